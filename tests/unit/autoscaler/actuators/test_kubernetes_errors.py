"""The error of each response of the API server."""

import json

import pytest
from kubernetes.aio.client.exceptions import ApiException

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_errors import (
    AccessDenied,
    Conflict,
    Expired,
    FieldConflict,
    Invalid,
    NotFound,
    raise_if_final,
)

PATCH_FAILED = "the server rejected our request due to an error in our request"


def answer(code, message="", reason="", causes=(), headers=None):
    details = {"causes": [{"reason": cause} for cause in causes]} if causes else {}
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    error = ApiException(status=code, reason="R", body=json.dumps(body | {"details": details}))
    error.headers = headers
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(answer(400, "json: cannot unmarshal array"), Invalid, id="merge-patch-array"),
        pytest.param(answer(401, "Unauthorized"), AccessDenied, id="401"),
        pytest.param(answer(403, 'User "x" cannot patch'), AccessDenied, id="403"),
        pytest.param(answer(404, "not found"), NotFound, id="404"),
        pytest.param(answer(409, "already exists", "AlreadyExists"), Conflict, id="exists"),
        pytest.param(answer(409, "object has been modified", "Conflict"), Conflict, id="modified"),
        pytest.param(
            answer(409, "Apply failed with 1 conflict", "Conflict", ["FieldManagerConflict"]),
            FieldConflict,
            id="field-manager",
        ),
        pytest.param(answer(410, "too old", "Expired"), Expired, id="410-expired"),
        pytest.param(answer(410, "gone", "Gone"), Expired, id="410-gone"),
        pytest.param(answer(500, "compacted", "Expired"), Expired, id="expired-by-reason"),
        pytest.param(ApiException(410, "Expired: too old resource version"), Expired, id="event"),
        pytest.param(answer(415, "unsupported media type"), Invalid, id="415"),
        pytest.param(answer(422, PATCH_FAILED, "Invalid"), Conflict, id="test-failed"),
        pytest.param(
            answer(422, 'X "y" is invalid: spec: Invalid', "Invalid", ["FieldValueInvalid"]),
            Invalid,
            id="invalid-object",
        ),
        pytest.param(answer(422, 'X "y" is invalid: spec'), Invalid, id="invalid-without-causes"),
        pytest.param(answer(405, "not allowed"), ActuatorError, id="405"),
    ],
)
def test_final_answers_carry_the_servers_sentence(error, expected):
    with pytest.raises(ActuatorError) as found:
        raise_if_final("patch leases x", error)
    assert type(found.value) is expected
    message = json.loads(error.body)["message"] if error.body else error.reason
    assert str(found.value) == f"Kubernetes: patch leases x: {error.status} {message}"


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        pytest.param(answer(429, headers={"Retry-After": "2"}), 2.0, id="throttled"),
        pytest.param(answer(429, headers={"Retry-After": "900"}), 4.0, id="not-for-minutes"),
        pytest.param(answer(500), 0.0, id="500"),
        pytest.param(answer(503, headers={"Retry-After": "Mon, 30 Nov 2026"}), 0.0, id="a-date"),
        pytest.param(answer(504, "Too large resource version", "Timeout"), 0.0, id="504"),
        pytest.param(ApiException(0, "no answer"), 0.0, id="no-status"),
    ],
)
def test_what_may_be_tried_again(error, seconds):
    assert raise_if_final("get", error) == seconds


@pytest.mark.parametrize("body", [None, "", "<html>", "[]", '{"details": 1}', '{"details": {}}'])
def test_answers_of_something_else_are_errors_too(body):
    with pytest.raises(AccessDenied, match="403"):
        raise_if_final("get", ApiException(403, "Forbidden", body=body))
