"""What a test file leaves behind is put back."""

import logging
import os
import sys

import pytest

from tests.support.process_state import ProcessState

NAME = "MOE_TEST_PROCESS_STATE"


@pytest.fixture
def state(monkeypatch):
    monkeypatch.setenv(NAME, "before")
    state = ProcessState.now()
    yield state
    state.restore()


@pytest.mark.parametrize("value", ["after", None])
def test_the_environment(state, value):
    del os.environ[NAME]
    if value is not None:
        os.environ[NAME] = value
    os.environ["LD_PRELOAD"] = "/x"
    state.restore()
    assert os.environ[NAME] == "before"
    assert os.environ.get("LD_PRELOAD") == state.environment.get("LD_PRELOAD")


def test_what_pytest_sets_stays(state):
    current = "PYTEST_CURRENT_TEST"
    os.environ[current] = "changed"
    state.restore()
    assert os.environ[current] == "changed"


def test_the_current_folder(state, tmp_path):
    os.chdir(tmp_path)
    state.restore()
    assert state.folder.samefile(".")


def test_loggers(state):
    root, new = logging.getLogger(), logging.getLogger(f"{NAME}.new")
    before = root.level, [*root.handlers]
    for each in (root, new):
        each.setLevel(logging.CRITICAL)
        each.addHandler(logging.NullHandler())
    new.propagate = False
    assert not new.isEnabledFor(logging.INFO)  # loggers remember the answer
    state.restore()
    assert (root.level, root.handlers) == before
    assert (new.level, new.propagate, new.handlers) == (logging.NOTSET, True, [])


def test_a_logger_that_was_there(state):
    logger = logging.getLogger(f"{NAME}.old")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    state = ProcessState.now()
    logger.propagate, logger.disabled = True, True
    logger.setLevel(logging.ERROR)
    state.restore()
    assert (logger.level, logger.propagate, logger.disabled) == (logging.INFO, False, False)


def test_the_hook_for_uncaught_exceptions(state):
    sys.excepthook = print
    state.restore()
    assert sys.excepthook is state.excepthook
