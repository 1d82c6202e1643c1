"""Hides warnings that everybody on CPU gets and nobody can act on.

They come from every process of every rank. Whoever asks vLLM for more than its warnings
(``telemetry.log_level: debug``) gets them all.
"""

import logging

_EXPECTED = (
    "Enforce eager set, disabling torch.compile",  # that is what the settings ask for
    "Inductor compilation was disabled by user settings",  # the same
    "Triton is not installed",  # a GPU compiler
    "Model Runner V2 requires Triton",  # the same
    "Reset SSM cache type to float32",  # about another kind of model
    "%s is not found in LD_PRELOAD",  # `moe-serving doctor` says what is worth installing
    "min_p and logit_bias parameters won't work with speculative decoding",
    "max_num_scheduled_tokens is set to",
)
"""Beginnings of vLLM's messages, before their arguments are filled in."""


def install() -> None:
    """Filter what this process's vLLM prints. Safe to call twice."""
    logger = logging.getLogger("vllm")
    if logger.getEffectiveLevel() < logging.WARNING:
        return
    # Filters of a logger do not see its children's records; those of a handler do.
    for handler in logger.handlers:
        handler.addFilter(_is_news)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_EXPECTED)
