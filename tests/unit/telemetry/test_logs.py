"""Logs: one JSON object per line, one line per request, and vLLM's records filtered."""

import json
import logging
import sys
from dataclasses import replace

import pytest
import structlog
from vllm.exceptions import VLLMValidationError

from serving.errors import NotReady
from serving.settings import TelemetrySettings
from serving.telemetry.logs import RequestLine, configure_logs, expected_errors, log_request


@pytest.fixture
def lines(capsys):
    """Configure logging as in a process, return its output, and undo it afterwards."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)

    def read(level: str = "info", write=lambda: None) -> list[dict]:
        settings = TelemetrySettings(log_level=level, log_format="json")
        configure_logs(settings, process="router")
        write()
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield read
    root.handlers[:], root.level = before
    structlog.reset_defaults()


LINE = RequestLine(
    request_id="r",
    protocol="grpc",
    method="Chat",
    model="m",
    outcome="ok",
    status="OK",
    duration=0.25,
    prompt_tokens=5,
)


def test_request_line(lines):
    (line,) = lines(write=lambda: log_request(LINE))
    assert {key: line[key] for key in ("request_id", "protocol", "outcome", "duration")} == {
        "request_id": "r",
        "protocol": "grpc",
        "outcome": "ok",
        "duration": 0.25,
    }
    assert line["process"] == "router"
    assert "ttft" not in line
    assert "completion_tokens" not in line


def test_standard_records_take_the_same_way(lines):
    (line,) = lines(write=lambda: logging.getLogger("other").warning("hm %s", 1))
    assert (line["event"], line["level"], line["logger"]) == ("hm 1", "warning", "other")


@pytest.mark.parametrize(
    ("level", "name", "record", "shown"),
    [
        pytest.param("info", "vllm.config", logging.WARNING, False, id="vLLM warns"),
        pytest.param("info", "vllm.config", logging.ERROR, True, id="vLLM fails"),
        pytest.param("debug", "vllm.config", logging.INFO, True, id="vLLM tells in debug"),
        pytest.param("debug", "vllm.x", logging.DEBUG, False, id="vLLM shows no requests"),
        pytest.param("debug", "other", logging.DEBUG, False, id="nor does any other library"),
        pytest.param("debug", "serving.x", logging.DEBUG, True, id="ours in debug"),
        pytest.param("info", "serving.x", logging.INFO, True, id="ours"),
        pytest.param("error", "serving.x", logging.WARNING, False, id="ours below the level"),
    ],
)
def test_levels(lines, level, name, record, shown):
    written = lines(level, lambda: logging.getLogger(name).log(record, "x"))
    assert bool(written) is shown


def test_a_librarys_root_level_does_not_silence_ours(lines):
    def write() -> None:
        logging.getLogger().setLevel(logging.ERROR)
        structlog.get_logger("serving.router").info("router is up")

    assert [line["event"] for line in lines(write=write)] == ["router is up"]


def test_vllm_calling_a_bad_request_an_error_is_dropped():
    record = logging.LogRecord("vllm.entrypoints.x", logging.ERROR, "", 0, "x", (), None)
    assert not expected_errors(record)


@pytest.mark.parametrize(
    ("name", "error", "kept"),
    [
        pytest.param("vllm.x", NotReady("x"), False, id="ours, by vLLM"),
        pytest.param("vllm.x", KeyError("x"), True, id="a fault, by vLLM"),
        pytest.param("vllm.x", VLLMValidationError("x"), False, id="a bad request, by vLLM"),
        pytest.param("serving.x", NotReady("x"), True, id="ours, by us"),
    ],
)
def test_tracebacks_of_expected_errors_are_dropped(name, error, kept):
    try:
        raise error
    except type(error):
        record = logging.LogRecord(name, logging.ERROR, "", 0, "x", (), sys.exc_info())
    assert expected_errors(record) is kept


SECRET = "moe-a-key-in-a-variable"


def fail() -> None:
    headers = {"authorization": SECRET}
    raise KeyError(len(headers))


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_do_not_show_variables(lines, capsys, form):
    lines()  # for its clean-up
    configure_logs(TelemetrySettings(log_format=form), process="router")
    try:
        fail()
    except KeyError:
        structlog.get_logger("serving.x").exception("ours")
        logging.getLogger("other").exception("theirs")
    written = capsys.readouterr().err
    assert written.count("KeyError") >= 2
    assert "fail" in written
    assert SECRET not in written


def test_who_asked_is_in_the_line(lines):
    record = replace(LINE, tenant="alice", priority="batch", waited=0.1234567, resumes=0)
    (line,) = lines(write=lambda: log_request(record))
    assert {name: line[name] for name in ("tenant", "priority", "waited", "resumes")} == {
        "tenant": "alice",
        "priority": "batch",
        "waited": 0.123457,
        "resumes": 0,
    }
