"""Characters as tokens: a byte-level tokenizer without merges, and DeepSeek's special tokens.

The first 256 ids are byte values. Special tokens follow, with reserved ones up to a multiple of 32:
every id below ``VOCAB_SIZE`` decodes.
"""

import json
from pathlib import Path
from typing import Any

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
THINK_END = "</think>"
CALLS = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
SEP = "<｜tool▁sep｜>"
OUTPUTS = "<｜tool▁outputs▁begin｜>"
OUTPUTS_END = "<｜tool▁outputs▁end｜>"
OUTPUT = "<｜tool▁output▁begin｜>"
OUTPUT_END = "<｜tool▁output▁end｜>"

_NAMED = [
    BOS,
    EOS,
    PAD,
    USER,
    ASSISTANT,
    THINK,
    THINK_END,
    CALLS,
    CALLS_END,
    CALL,
    CALL_END,
    SEP,
    OUTPUTS,
    OUTPUTS_END,
    OUTPUT,
    OUTPUT_END,
]
VOCAB_SIZE = 288
_RESERVED = [f"<｜reserved▁{i}｜>" for i in range(VOCAB_SIZE - 256 - len(_NAMED))]
SPECIALS = {text: 256 + i for i, text in enumerate(_NAMED + _RESERVED)}

# <think> and the tool markers are tokens but not "special": clients that skip special tokens when
# decoding must see them (as in DeepSeek's tokenizer).
_VISIBLE = {THINK, THINK_END, CALLS, CALLS_END, CALL, CALL_END, SEP} | {
    OUTPUTS,
    OUTPUTS_END,
    OUTPUT,
    OUTPUT_END,
}

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def encode(text: str) -> list[int]:
    """Return the token ids of text without special tokens."""
    return list(text.encode())


def decode(ids: list[int]) -> str:
    """Return the text of token ids, without special tokens."""
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def _byte_alphabet() -> dict[int, str]:
    """Return GPT-2's printable character for each byte, as in the ``ByteLevel`` pre-tokenizer."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(printable))
    return table


def write(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    added = [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": text not in _VISIBLE,
        }
        for text, index in SPECIALS.items()
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {char: byte for byte, char in sorted(_byte_alphabet().items())},
            "merges": [],
        },
    }
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        **names,
        "chat_template": CHAT_TEMPLATE.read_text(encoding="utf-8"),
    }
    for name, value in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", names),
    ):
        text = json.dumps(value, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")
