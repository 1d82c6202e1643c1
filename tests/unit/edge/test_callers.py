"""From headers to a Caller, and from a journal to headers."""

import json

import pytest

from serving.edge.auth.authenticator import ANYONE, Identity
from serving.edge.auth.permissions import Role
from serving.edge.callers import as_caller, caller_of, explanation_of, line_of
from serving.errors import InvalidRequest, PermissionDenied
from serving.request_context import Caller, Journal, Priority, caller, caller_var
from serving.routing import decision

BATCH = Identity("nightly", frozenset({Role.USER}), frozenset({Priority.BATCH}))
USER = Identity("alice", frozenset({Role.USER}))


class Pick:
    """As far as it matters here."""

    def __init__(self, reason: str, explained: object = None) -> None:
        self.reason = reason
        if explained is not None:
            self.explain = lambda: explained


@pytest.mark.parametrize(
    ("identity", "headers", "expected"),
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
            ANYONE,
            {"x-explain-routing": "1", "x-priority": "interactive"},
            ("anonymous", Priority.INTERACTIVE, None, True),
            id="no-keys",
        ),
    ],
)
def test_caller(identity, headers, expected):
    made = caller_of(identity, headers)
    assert (made.tenant, made.priority, made.session_id, made.explain) == expected
    assert made.roles == {role.value for role in identity.roles}


@pytest.mark.parametrize(
    ("identity", "headers", "error"),
    [
        pytest.param(USER, {"x-priority": "urgent"}, InvalidRequest, id="priority"),
        pytest.param(USER, {"x-priority": ""}, InvalidRequest, id="empty-priority"),
        pytest.param(USER, {"x-priority": "0"}, InvalidRequest, id="number"),
        pytest.param(BATCH, {"x-priority": "standard"}, PermissionDenied, id="not-allowed"),
        pytest.param(USER, {"x-session-id": ""}, InvalidRequest, id="empty-session"),
        pytest.param(USER, {"x-session-id": "x" * 129}, InvalidRequest, id="long-session"),
        pytest.param(USER, {"x-session-id": "a\nb"}, InvalidRequest, id="line-in-session"),
        pytest.param(USER, {"x-session-id": "ä"}, InvalidRequest, id="session-not-ascii"),
        pytest.param(ANYONE, {"x-explain-routing": "yes"}, InvalidRequest, id="explain-what"),
        pytest.param(USER, {"x-explain-routing": "1"}, PermissionDenied, id="may-not-see"),
    ],
)
def test_refused(identity, headers, error):
    with pytest.raises(error, match="x-"):
        caller_of(identity, headers)


def test_every_request_has_a_journal_of_its_own():
    assert caller_of(USER, {}).journal is not caller_of(USER, {}).journal


def test_caller_in_a_block():
    with as_caller(caller_of(USER, {})):
        assert caller().tenant == "alice"
    assert caller_var.get() is None


def test_line():
    journal = Journal(waited=1.5, resumes=1, parked=True, cached_tokens=16)
    caller = Caller("alice", Priority.BATCH, journal=journal)
    nowhere = {"group": None, "rank": None, "cached_tokens": None, "trace_id": None}
    asked = {"tenant": "alice", "priority": "batch", "waited": 1.5, "resumes": 1, "parked": True}
    assert line_of(caller) == asked | nowhere
    journal.picks += [decision.Pick("g0", "e", 1, "load"), decision.Pick("g1", "e", 3, "only")]
    assert line_of(caller) == asked | nowhere | {"group": "g1", "rank": 3, "cached_tokens": 16}


@pytest.mark.parametrize(
    ("picks", "expected"),
    [
        pytest.param([], [], id="none"),
        pytest.param([Pick("first"), Pick("second")], ["first", "second"], id="reasons"),
        pytest.param([Pick("r", {"score": 1.0})], [{"score": 1.0}], id="scores"),
        pytest.param([Pick("short", "x" * 5000)], ["short"], id="too-long-falls-to-reason"),
        pytest.param([Pick("a" * 3000), Pick("b" * 3000)], ["b" * 500], id="the-last-one"),
    ],
)
def test_explanation(picks, expected):
    text = explanation_of(Journal(picks=picks))
    assert json.loads(text) == expected
    assert len(text) <= 4096


def test_an_explanation_is_one_line_of_ascii():
    text = explanation_of(Journal(picks=[Pick("größe\r\nset-cookie: x")]))
    assert text.isascii()
    assert "\n" not in text
    assert "\r" not in text
