"""Filter for warnings that occur in every CPU deployment and require no action.

Every process of every rank logs them. ``telemetry.log_level: debug`` disables the filter.
"""

import logging

_EXPECTED = (
    "Enforce eager set, disabling torch.compile",  # intended by the settings
    "Inductor compilation was disabled by user settings",  # as above
    "Triton is not installed",  # a GPU compiler
    "Model Runner V2 requires Triton",  # as above
    "Reset SSM cache type to float32",  # concerns other model architectures
    "%s is not found in LD_PRELOAD",  # `moe-serving doctor` recommends the libraries to install
    "min_p and logit_bias parameters won't work with speculative decoding",
    "max_num_scheduled_tokens is set to",
)
"""Prefixes of the messages to hide, before argument formatting."""


def install() -> None:
    """Filter vLLM's log output in this process. Safe to call twice."""
    logger = logging.getLogger("vllm")
    if logger.getEffectiveLevel() < logging.WARNING:
        return
    # Filters of a logger do not see records of child loggers; filters of a handler do.
    for handler in logger.handlers:
        handler.addFilter(_is_unexpected)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


def _is_unexpected(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_EXPECTED)
