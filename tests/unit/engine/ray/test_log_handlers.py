"""Serve's log handlers outlive vLLM's set-up of logging."""

import logging
import logging.config
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest

from serving.engine.ray.log_handlers import kept_handlers


@pytest.fixture
def serve(tmp_path):
    logger = logging.getLogger("like.ray.serve")
    logger.setLevel(logging.INFO)  # whatever tests before have left of the root's
    target = RotatingFileHandler(tmp_path / "replica.log")
    handler = MemoryHandler(100, target=target)
    logger.addHandler(handler)
    yield logger, handler, target
    logger.removeHandler(handler)
    handler.close()
    target.close()


def configure():
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})


def test_configuring_takes_the_target_away(serve):
    _, handler, _ = serve
    configure()
    assert handler.target is None  # if not, log_handlers.py has become needless


def test_kept_handlers_have_their_target_and_it_writes(serve):
    logger, handler, target = serve
    with kept_handlers(logger):
        configure()
    assert handler.target is target
    logger.warning("still here")
    handler.flush()
    assert "still here" in Path(target.baseFilename).read_text(encoding="utf-8")
