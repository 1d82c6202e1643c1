"""Headers and metadata: accepted and rejected values, and the returned explanation."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.edge.auth.authenticator import ALLOW_ALL, Principal
from serving.edge.auth.key_file import Role
from serving.edge.request_headers import (
    explanation_of,
    request_context_of,
    request_id_of,
    timeout_of,
)
from serving.errors import InvalidRequest, PermissionDenied
from serving.request_context import Priority, RequestRecord

BATCH = Principal("nightly", frozenset({Role.USER}), frozenset({Priority.BATCH}))
USER = Principal("alice", frozenset({Role.USER}))


class RoutingDecision:
    """A decision whose explanation is its reason, or the given text."""

    def __init__(self, reason: str, explained: object = None) -> None:
        self.reason = reason
        self.explain = lambda: reason if explained is None else explained


@pytest.mark.parametrize(
    ("principal", "headers", "expected"),
    [
        pytest.param(USER, {}, ("alice", Priority.STANDARD, None, False), id="nothing-said"),
        pytest.param(
            USER,
            {"x-priority": "BATCH", "x-session-id": "s-1", "x-explain-routing": "0"},
            ("alice", Priority.BATCH, "s-1", False),
            id="all-said",
        ),
        pytest.param(BATCH, {}, ("nightly", Priority.BATCH, None, False), id="least-allowed"),
        pytest.param(
            ALLOW_ALL,
            {"x-explain-routing": "1", "x-priority": "interactive"},
            ("anonymous", Priority.INTERACTIVE, None, True),
            id="no-keys",
        ),
    ],
)
def test_caller(principal, headers, expected):
    made = request_context_of(principal, headers)
    assert (made.tenant, made.priority, made.session_id, made.explain) == expected
    assert made.roles == {role.value for role in principal.roles}


@pytest.mark.parametrize(
    ("principal", "headers", "error"),
    [
        pytest.param(USER, {"x-priority": "urgent"}, InvalidRequest, id="priority"),
        pytest.param(USER, {"x-priority": ""}, InvalidRequest, id="empty-priority"),
        pytest.param(USER, {"x-priority": "0"}, InvalidRequest, id="number"),
        pytest.param(BATCH, {"x-priority": "standard"}, PermissionDenied, id="not-allowed"),
        pytest.param(USER, {"x-session-id": ""}, InvalidRequest, id="empty-session"),
        pytest.param(USER, {"x-session-id": "x" * 129}, InvalidRequest, id="long-session"),
        pytest.param(USER, {"x-session-id": "a\nb"}, InvalidRequest, id="line-in-session"),
        pytest.param(USER, {"x-session-id": "ä"}, InvalidRequest, id="session-not-ascii"),
        pytest.param(ALLOW_ALL, {"x-explain-routing": "yes"}, InvalidRequest, id="explain-what"),
        pytest.param(USER, {"x-explain-routing": "1"}, PermissionDenied, id="may-not-see"),
    ],
)
def test_refused(principal, headers, error):
    with pytest.raises(error, match="x-"):
        request_context_of(principal, headers)


def test_every_request_has_a_record_of_its_own():
    assert request_context_of(USER, {}).record is not request_context_of(USER, {}).record


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        pytest.param([], [], id="none"),
        pytest.param(
            [RoutingDecision("first"), RoutingDecision("second")], ["first", "second"], id="reasons"
        ),
        pytest.param([RoutingDecision("r", {"score": 1.0})], [{"score": 1.0}], id="scores"),
        pytest.param(
            [RoutingDecision("short", "x" * 5000)], ["short"], id="too-long-falls-to-reason"
        ),
        pytest.param(
            [RoutingDecision("a" * 3000), RoutingDecision("b" * 3000)],
            ["b" * 500],
            id="the-last-one",
        ),
    ],
)
def test_explanation(decisions, expected):
    text = explanation_of(RequestRecord(decisions=decisions))
    assert json.loads(text) == expected
    assert len(text) <= 4096


def test_an_explanation_is_one_line_of_ascii():
    text = explanation_of(RequestRecord(decisions=[RoutingDecision("größe\r\nset-cookie: x")]))
    assert text.isascii()
    assert "\n" not in text
    assert "\r" not in text


@given(st.text())
def test_an_id_is_passed_or_refused_never_changed(text):
    try:
        passed = request_id_of({"x-request-id": text})
    except InvalidRequest:
        assert not text or len(text) > 128 or any(not "!" <= char <= "~" for char in text)
    else:
        assert passed == text


def test_made_ids_differ():
    assert request_id_of({}) != request_id_of({})


@given(st.integers(1, 86_400_000))
def test_timeout_in_milliseconds(milliseconds):
    assert timeout_of({"x-request-timeout-ms": str(milliseconds)}) == milliseconds / 1000


@given(st.text().filter(lambda text: not text.isdecimal()))
def test_other_timeouts_are_refused(text):
    with pytest.raises(InvalidRequest):
        timeout_of({"x-request-timeout-ms": text})


def test_no_timeout_is_none():
    assert timeout_of({}) is None
