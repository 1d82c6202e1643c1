"""Keeps Ray Serve's log handlers alive while vLLM configures its own.

``logging.config.dictConfig``, which vLLM calls when it is imported, closes every handler of the
process (logging.config._clearExistingHandlers). A closed memory handler has lost its target, and
Serve asks that target for its file when a new controller takes the replica over
(ray.serve._private.logging_utils.get_component_logger_file_path): the call failed, and the
controller stopped every rank.
"""

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler


@contextlib.contextmanager
def kept_handlers(logger: logging.Logger) -> Iterator[None]:
    """Give the memory handlers of ``logger`` back what is taken from them in the block."""
    targets = {
        handler: handler.target for handler in logger.handlers if isinstance(handler, MemoryHandler)
    }
    try:
        yield
    finally:
        for handler, target in targets.items():
            # A file handler that was closed opens its file again when it writes.
            if handler.target is None:
                handler.setTarget(target)
