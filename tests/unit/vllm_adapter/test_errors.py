"""Errors of ``serving.errors`` in vLLM's handlers, and errors that ranks report."""

import pytest
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from serving.errors import (
    ERROR_TABLE,
    Cancelled,
    EngineError,
    GroupLost,
    InvalidRequest,
    LinkRefused,
    Overloaded,
    SettingsError,
    status_of,
)
from serving.link.v1 import link_pb2
from serving.vllm_adapter.errors import as_vllm_error, error_of

CODES = link_pb2.RequestError

# Errors that a client's request can cause; 499 has no name in http.HTTPStatus.
MET = [cls for cls in ERROR_TABLE if cls not in {Cancelled, SettingsError, LinkRefused}]


@pytest.mark.parametrize("cls", [pytest.param(cls, id=cls.__name__) for cls in MET])
def test_vllm_maps_it_to_the_tables_status(cls):
    error = as_vllm_error(cls("what to do"))
    assert isinstance(error, cls)
    assert str(error) == "what to do"
    assert status_of(error) == status_of(cls("x"))
    response = create_error_response(error)
    assert response.error.code == status_of(error).http
    assert response.error.message == "what to do"


def test_visible_keeps_the_cause_and_is_idempotent():
    error = GroupLost("gone")
    error.__cause__ = OSError("cable")
    once = as_vllm_error(error)
    assert once.__cause__ is error.__cause__
    assert as_vllm_error(once) is once


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(CODES.INVALID_REQUEST, InvalidRequest, id="invalid"),
        pytest.param(CODES.ENGINE_FAILED, EngineError, id="engine"),
        pytest.param(CODES.DRAINING, GroupLost, id="draining"),
        pytest.param(CODES.ABORTED, GroupLost, id="aborted"),
        pytest.param(CODES.OVERLOADED, Overloaded, id="overloaded"),
        pytest.param(CODES.CODE_UNSPECIFIED, EngineError, id="unspecified"),
    ],
)
@pytest.mark.parametrize("message", [pytest.param("why", id="told"), pytest.param("", id="mute")])
def test_rank_error_becomes_ours(code, expected, message):
    error = error_of(CODES(code=code, message=message))
    assert type(error) is expected
    assert message in str(error)
