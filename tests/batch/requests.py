"""The requests of the interference measurement, the same for clients and batches."""

import random
from typing import Any

TOKENS = 16, 48
"""Smallest and largest number of generated tokens."""


def body(chance: random.Random) -> dict[str, Any]:
    """Return the body of a chat completion with a random sum and a random number of tokens."""
    question = f"{chance.randrange(1000)}+{chance.randrange(1000)}"
    return {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": chance.randint(*TOKENS),
        "ignore_eos": True,
    }
