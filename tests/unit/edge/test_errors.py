"""HTTP body and gRPC status of every error agree with the error table."""

import json

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError

from serving.edge.grpc.errors import DOMAIN, BadField, rpc_error
from serving.errors import ERROR_TABLE, Cancelled, InvalidRequest, Overloaded, ServingError
from serving.vllm_adapter.error_response import content_of, response_of, retry_after_of
from serving.vllm_adapter.errors import as_vllm_error

OURS = [pytest.param(cls, id=cls.__name__) for cls in ERROR_TABLE]


def details(failure, kind):
    """Unpack the details of one kind."""
    found = []
    for packed in failure.status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


SHOWN = [
    (cls, plain)
    for cls in ERROR_TABLE
    for plain in (True, False)
    # The client of a cancelled request is gone: vLLM never sees its error.
    if plain or cls != Cancelled
]


@pytest.mark.parametrize(("cls", "plain"), SHOWN)
def test_table_entry_leaves_over_http(cls, plain):
    entry = ERROR_TABLE[cls]
    error = cls("what to do")
    body = content_of(response_of(error if plain else as_vllm_error(error)))["error"]
    assert (body["code"], body["reason"]) == (entry.http, entry.reason)
    assert body["message"] == "what to do"
    assert body["type"].endswith(("Error", "Request"))
    json.dumps(body)


@pytest.mark.parametrize("cls", OURS)
def test_table_entry_leaves_over_grpc(cls):
    entry = ERROR_TABLE[cls]
    failure = rpc_error(cls("what to do"))
    assert failure.code == grpc.StatusCode[entry.grpc]
    assert failure.status.code == code_pb2.Code.Value(entry.grpc)
    assert failure.status.message == "what to do"
    assert details(failure, error_details_pb2.ErrorInfo) == [
        error_details_pb2.ErrorInfo(reason=entry.reason, domain=DOMAIN)
    ]
    assert len(details(failure, error_details_pb2.RetryInfo)) == entry.retryable
    assert failure.trailers


@pytest.mark.parametrize("cls", OURS)
def test_http_body_and_grpc_status_agree(cls):
    """An error body of a vLLM handler gives the same gRPC status as the error itself."""
    error = cls("x")
    assert rpc_error(response_of(error)).code == rpc_error(error).code


@pytest.mark.parametrize(
    ("error", "http", "code"),
    [
        pytest.param(VLLMValidationError("x"), 400, "INVALID_ARGUMENT", id="vLLM validation"),
        pytest.param(VLLMNotFoundError("x"), 404, "NOT_FOUND", id="vLLM not found"),
        pytest.param(ValueError("x"), 400, "INVALID_ARGUMENT", id="ValueError"),
        pytest.param(NotImplementedError("x"), 501, "UNIMPLEMENTED", id="NotImplementedError"),
        pytest.param(RuntimeError("x"), 500, "INTERNAL", id="anything else"),
        pytest.param(KeyError("x"), 500, "INTERNAL", id="KeyError"),
    ],
)
def test_errors_that_are_not_ours(error, http, code):
    assert response_of(error).error.code == http
    assert rpc_error(error).code.name == code


def test_unknown_errors_keep_their_text_inside():
    error = RuntimeError("secret")
    assert "secret" not in json.dumps(content_of(response_of(error)))
    assert "secret" not in str(rpc_error(error).status)


@pytest.mark.parametrize(
    ("error", "field"),
    [
        pytest.param(BadField("messages[0].role", "is required"), "messages[0].role", id="ours"),
        pytest.param(
            VLLMValidationError("x", parameter="temperature"),
            "sampling.temperature",
            id="vLLM's parameter by our name",
        ),
    ],
)
def test_bad_request_names_the_field(error, field):
    (bad,) = details(rpc_error(error), error_details_pb2.BadRequest)
    assert [violation.field for violation in bad.field_violations] == [field]


def test_a_request_error_without_field_has_no_bad_request():
    assert details(rpc_error(InvalidRequest("x")), error_details_pb2.BadRequest) == []


def test_subclasses_are_found_by_their_nearest_entry():
    class Special(InvalidRequest):
        pass

    assert rpc_error(Special("x")).code == grpc.StatusCode.INVALID_ARGUMENT
    assert issubclass(Special, ServingError)


@pytest.mark.parametrize("plain", [True, False], ids=["ours", "as vLLM sees it"])
@pytest.mark.parametrize(
    ("known", "seconds"), [(None, 1.0), (12.3456, 12.346), (0.0, 0.001)], ids=str
)
def test_overloaded_says_when_to_come_back(known, seconds, plain):
    error = Overloaded("full", retry_after=known)
    body = response_of(error if plain else as_vllm_error(error))
    assert retry_after_of(body.error) == seconds
    assert ("retry_after" in content_of(body)["error"]) == (known is not None)
    for failure in (rpc_error(error if plain else as_vllm_error(error)), rpc_error(body)):
        [info] = details(failure, error_details_pb2.RetryInfo)
        assert info.retry_delay.ToMilliseconds() == seconds * 1000
