"""What a REST request must show; what goes no further; what is counted."""

import pytest

from serving.clock import SystemClock
from serving.edge.auth.authenticator import Authenticator
from serving.edge.auth.keys import digest_of, parse_keys
from serving.edge.auth.rest import Door
from serving.errors import InvalidRequest, PermissionDenied, Unauthenticated
from serving.telemetry import metrics

KEY = "moe-key"
RING = parse_keys(f'keys: [{{id: a, tenant: alice, hash: "{digest_of(KEY)}"}}]')
GUARDED = Door(Authenticator(lambda: RING, SystemClock()))
OPEN = Door(Authenticator(None, SystemClock()))


def scope(path: str = "/v1/completions", method: str = "POST", **headers: str) -> dict:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": pairs}


def test_work_has_a_caller_and_pages_have_none():
    visitor = GUARDED.enter(scope(authorization=f"Bearer {KEY}"), is_work=True)
    assert (visitor.identity.tenant, visitor.caller.tenant) == ("alice", "alice")
    page = scope("/v1/models", "GET", authorization=f"Bearer {KEY}", x_priority="nonsense")
    assert GUARDED.enter(page, is_work=False).caller is None


@pytest.mark.parametrize("door", [GUARDED, OPEN], ids=["keys", "no-keys"])
def test_keys_go_no_further(door):
    entering = scope(
        Authorization=f"Bearer {KEY}", x_api_key=KEY, x_session_id="s", content_type="text/plain"
    )
    door.enter(entering, is_work=True)
    assert dict(entering["headers"]) == {b"x-session-id": b"s", b"content-type": b"text/plain"}


@pytest.mark.parametrize(
    ("entering", "error", "reason"),
    [
        pytest.param(scope(), Unauthenticated, "UNAUTHENTICATED", id="no-key"),
        pytest.param(
            scope("/fleet", "GET", authorization=f"Bearer {KEY}"),
            PermissionDenied,
            "PERMISSION_DENIED",
            id="no-admin",
        ),
        pytest.param(
            scope(authorization=f"Bearer {KEY}", x_explain_routing="1"),
            PermissionDenied,
            "PERMISSION_DENIED",
            id="may-not-see",
        ),
    ],
)
def test_refusals_are_counted(entering, error, reason):
    counter = metrics.AUTH_FAILURES.labels("rest", reason)
    before = counter._value.get()
    with pytest.raises(error):
        GUARDED.enter(entering, is_work=True)
    assert counter._value.get() == before + 1


def test_websockets_are_refused_after_the_key_was_asked_for():
    with pytest.raises(Unauthenticated):
        GUARDED.enter(scope("/v1/realtime", "GET", upgrade="websocket"), is_work=False)
    with pytest.raises(InvalidRequest, match="WebSocket"):
        OPEN.enter(scope("/v1/realtime", "GET", upgrade="WebSocket"), is_work=False)


@pytest.mark.parametrize(("method", "let_in"), [("OPTIONS", True), ("GET", False), ("POST", False)])
def test_only_a_preflight_passes_without_a_key(method, let_in):
    asking = scope("/v1/models", method, origin="https://a", access_control_request_method="GET")
    if let_in:
        assert not GUARDED.enter(asking, is_work=False).identity.roles
    else:
        with pytest.raises(Unauthenticated):
            GUARDED.enter(asking, is_work=False)


def test_metrics_can_be_opened():
    door = Door(Authenticator(lambda: RING, SystemClock()), open_metrics=True)
    assert not door.enter(scope("/metrics", "GET"), is_work=False).identity.roles
    with pytest.raises(Unauthenticated):
        GUARDED.enter(scope("/metrics", "GET"), is_work=False)
