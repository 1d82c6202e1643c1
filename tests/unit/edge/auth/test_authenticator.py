"""Which headers authenticate as which principal, and headers removed from REST requests."""

import pytest

from serving.edge.auth.authenticator import (
    ALLOW_ALL,
    UNAUTHENTICATED,
    Authenticator,
    Permission,
    authenticate_rest,
    authenticated_as,
    is_preflight,
    principal_var,
    route_permission,
    rpc_permission,
)
from serving.edge.auth.key_file import Role
from serving.edge.auth.keys import digest_of, parse_keys
from serving.errors import InvalidRequest, PermissionDenied, Unauthenticated

USER, ADMIN, METRICS, OLD = "moe-user", "moe-admin", "moe-metrics", "moe-old"
RING = parse_keys(f"""
keys:
  - {{id: u, tenant: alice, hash: "{digest_of(USER)}"}}
  - {{id: a, tenant: ops, roles: [admin], hash: "{digest_of(ADMIN)}"}}
  - {{id: m, tenant: prom, roles: [metrics], hash: "{digest_of(METRICS)}"}}
  - {{id: o, tenant: alice, expires: 2001-01-01, hash: "{digest_of(OLD)}"}}
""")


class At2020:
    """A clock."""

    def monotonic(self) -> float:
        return 0.0

    def time(self) -> float:
        return 1577836800.0


AUTH = Authenticator(lambda: RING, At2020())
OPEN = Authenticator(None, At2020())


@pytest.mark.parametrize("permission", Permission)
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer none"}])
def test_without_keys_everybody_may_do_everything(permission, headers):
    assert Authenticator(None, At2020()).authenticate(headers, permission) is ALLOW_ALL


@pytest.mark.parametrize(
    "permission", [permission for permission in Permission if permission is not Permission.PUBLIC]
)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"authorization": ""}, id="empty"),
        pytest.param({"authorization": "Bearer "}, id="no-key"),
        pytest.param({"authorization": f"Basic {USER}"}, id="another-scheme"),
        pytest.param({"authorization": USER}, id="no-scheme"),
        pytest.param({"authorization": "Bearer wrong"}, id="wrong"),
        pytest.param({"authorization": f"Bearer {OLD}"}, id="expired"),
        pytest.param({"authorization": f"Bearer {digest_of(USER)}"}, id="the-hash"),
        pytest.param({"x-api-key": "wrong"}, id="wrong-in-the-other-header"),
        pytest.param({"authorization": "Bearer wrong", "x-api-key": USER}, id="bearer-wins"),
    ],
)
def test_no_valid_key(headers, permission):
    with pytest.raises(Unauthenticated) as caught:
        AUTH.authenticate(headers, permission)
    assert not any(word in str(caught.value) for word in (USER, OLD, "wrong", "expired"))


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        (USER, {Permission.PUBLIC, Permission.ANY_KEY, Permission.USER}),
        (METRICS, {Permission.PUBLIC, Permission.ANY_KEY, Permission.METRICS}),
        (ADMIN, set(Permission)),
    ],
)
def test_roles(key, allowed):
    for permission in Permission:
        headers = {"authorization": f"bearer {key}"}
        if permission in allowed:
            assert AUTH.authenticate(headers, permission).tenant in {"alice", "prom", "ops"}
        else:
            with pytest.raises(PermissionDenied, match=permission.value):
                AUTH.authenticate(headers, permission)


def test_anthropics_header():
    assert AUTH.authenticate({"x-api-key": USER}, Permission.USER).tenant == "alice"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_health_is_for_strangers_too(headers):
    assert AUTH.authenticate(headers, Permission.PUBLIC) is UNAUTHENTICATED


def test_health_knows_who_shows_a_key():
    principal = AUTH.authenticate({"authorization": f"Bearer {ADMIN}"}, Permission.PUBLIC)
    assert principal.has(Permission.ADMIN)


def test_keys_are_asked_for_at_every_call():
    rings = [RING, parse_keys("keys: []")]
    auth = Authenticator(lambda: rings[0], At2020())
    headers = {"authorization": f"Bearer {USER}"}
    assert auth.authenticate(headers, Permission.USER)
    rings.pop(0)
    with pytest.raises(Unauthenticated):
        auth.authenticate(headers, Permission.USER)


def test_identity_in_a_block():
    assert principal_var.get() is UNAUTHENTICATED
    with authenticated_as(ALLOW_ALL):
        assert principal_var.get().roles == frozenset(Role)
    assert principal_var.get() is UNAUTHENTICATED


def scope(path: str = "/v1/completions", method: str = "POST", **headers: str) -> dict:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": pairs}


@pytest.mark.parametrize("authenticator", [AUTH, OPEN], ids=["keys", "no-keys"])
def test_keys_go_no_further(authenticator):
    entering = scope(
        Authorization=f"Bearer {USER}", x_api_key=USER, x_session_id="s", content_type="text/plain"
    )
    authenticate_rest(entering, authenticator)
    assert dict(entering["headers"]) == {b"x-session-id": b"s", b"content-type": b"text/plain"}


def test_websockets_are_refused_after_the_key_was_asked_for():
    with pytest.raises(Unauthenticated):
        authenticate_rest(scope("/v1/realtime", "GET", upgrade="websocket"), AUTH)
    with pytest.raises(InvalidRequest, match="WebSocket"):
        authenticate_rest(scope("/v1/realtime", "GET", upgrade="WebSocket"), OPEN)


@pytest.mark.parametrize(("method", "let_in"), [("OPTIONS", True), ("GET", False), ("POST", False)])
def test_only_a_preflight_passes_without_a_key(method, let_in):
    asking = scope("/v1/models", method, origin="https://a", access_control_request_method="GET")
    if let_in:
        assert not authenticate_rest(asking, AUTH).roles
    else:
        with pytest.raises(Unauthenticated):
            authenticate_rest(asking, AUTH)


def test_metrics_can_be_opened():
    assert not authenticate_rest(scope("/metrics", "GET"), AUTH, open_metrics=True).roles
    with pytest.raises(Unauthenticated):
        authenticate_rest(scope("/metrics", "GET"), AUTH)


@pytest.mark.parametrize(
    ("path", "permission"),
    [
        ("/livez", Permission.PUBLIC),
        ("/readyz", Permission.PUBLIC),
        ("/health", Permission.PUBLIC),
        ("/metrics", Permission.METRICS),
        ("/fleet", Permission.ADMIN),
        ("/version", Permission.ANY_KEY),
        ("/v1/models", Permission.ANY_KEY),
        ("/v1/models/some/model", Permission.ANY_KEY),
        ("/openapi.json", Permission.ANY_KEY),
        ("/ping", Permission.PUBLIC),
        ("/load", Permission.METRICS),
        ("/v1/chat/completions", Permission.USER),
        ("/v1/anything/new", Permission.USER),
        ("/tokenize", Permission.USER),
        # Missing from the table, so ADMIN; also paths that resemble public ones.
        ("/docs", Permission.ADMIN),
        ("/", Permission.ADMIN),
        ("", Permission.ADMIN),
        ("/livez/", Permission.ADMIN),
        ("//livez", Permission.ADMIN),
        ("/LIVEZ", Permission.ADMIN),
        ("/livez/../fleet", Permission.ADMIN),
        ("/v1", Permission.ADMIN),
    ],
)
def test_permissions_of_routes(path, permission):
    assert route_permission(path) is permission


def test_metrics_can_be_opened_and_nothing_else_with_them():
    assert route_permission("/metrics", open_metrics=True) is Permission.PUBLIC
    assert route_permission("/fleet", open_metrics=True) is Permission.ADMIN


@pytest.mark.parametrize(
    ("method", "permission"),
    [
        ("/grpc.health.v1.Health/Check", Permission.PUBLIC),
        ("/grpc.health.v1.Health/Watch", Permission.PUBLIC),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Permission.ANY_KEY),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Permission.ANY_KEY),
        ("/serving.api.v1.InferenceService/Chat", Permission.USER),
        ("/serving.api.v1.InferenceService/ListModels", Permission.ANY_KEY),
        ("/serving.api.v1.FleetService/GetFleet", Permission.ADMIN),
        ("/serving.api.v1.FleetService/Drain", Permission.ADMIN),
        ("/serving.api.v1.UsageService/GetUsage", Permission.ADMIN),
        ("/serving.api.v1.BatchService/GetBatch", Permission.USER),
        ("/serving.api.v1.Other/Do", Permission.ADMIN),
        ("/grpc.health.v1.HealthX/Check", Permission.ADMIN),
        ("", Permission.ADMIN),
    ],
)
def test_permissions_of_rpcs(method, permission):
    assert rpc_permission(method) is permission


@pytest.mark.parametrize(
    ("method", "names", "expected"),
    [
        ("OPTIONS", {"origin", "access-control-request-method"}, True),
        ("OPTIONS", {"origin"}, False),
        ("GET", {"origin", "access-control-request-method"}, False),
    ],
)
def test_preflight(method, names, expected):
    assert is_preflight(method, frozenset(names)) is expected
