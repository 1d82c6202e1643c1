"""The error table: complete, consistent, and the same as in the documentation."""

from pathlib import Path

import grpc
import pytest

from serving import errors
from serving.errors import ERROR_TABLE, ServingError, status_of

DOCUMENT = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "errors.md"

# Both protocols return equivalent errors: https://cloud.google.com/apis/design/errors
HTTP_OF = {
    "INVALID_ARGUMENT": {400},
    "FAILED_PRECONDITION": {400, 409, 500, 503},
    "NOT_FOUND": {404},
    "UNAUTHENTICATED": {401},
    "PERMISSION_DENIED": {403},
    "RESOURCE_EXHAUSTED": {402, 429, 507},
    "UNAVAILABLE": {503},
    "DEADLINE_EXCEEDED": {504},
    "CANCELLED": {499},
    "UNIMPLEMENTED": {501},
    "INTERNAL": {500},
}


def own_classes() -> list[type[ServingError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, ServingError)
    ]


@pytest.mark.parametrize("cls", own_classes(), ids=lambda cls: cls.__name__)
def test_every_class_has_a_row_and_says_what_it_means(cls: type[ServingError]):
    assert cls in ERROR_TABLE
    assert cls.__doc__


@pytest.mark.parametrize("cls", own_classes(), ids=lambda cls: cls.__name__)
def test_status_names_a_grpc_code_that_fits_the_http_status(cls: type[ServingError]):
    status = ERROR_TABLE[cls]
    assert status.grpc in grpc.StatusCode.__members__
    assert status.http in HTTP_OF[status.grpc]


def test_reasons_are_unique_and_stable():
    reasons = [status.reason for status in ERROR_TABLE.values()]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.isupper() for reason in reasons)


def test_a_class_of_another_module_takes_its_nearest_row():
    class Full(errors.Overloaded):
        pass

    assert status_of(Full("x")) == ERROR_TABLE[errors.Overloaded]


def test_a_settings_error_is_not_the_clients_fault():
    # It derives from InvalidRequest; its own row must win.
    assert status_of(errors.SettingsError("x")).http == 500


@pytest.mark.parametrize(
    "error", [KeyError("secret"), OSError("disk"), KeyboardInterrupt()], ids=repr
)
def test_what_is_not_ours_is_internal(error: BaseException):
    status = status_of(error)
    assert (status.grpc, status.http, status.retryable) == ("INTERNAL", 500, False)


def test_the_documentation_holds_the_same_table():
    documented = [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        for line in DOCUMENT.read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    expected = [
        [
            cls.__name__,
            (cls.__doc__ or "").splitlines()[0],
            status.grpc,
            str(status.http),
            status.reason,
            "yes" if status.retryable else "no",
        ]
        for cls, status in ERROR_TABLE.items()
    ]
    assert documented == expected
