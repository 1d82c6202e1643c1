"""The one decision: which headers are who, and what that one may do."""

import pytest

from serving.edge.auth.authenticator import (
    ANYONE,
    STRANGER,
    Authenticator,
    identified,
    identity_var,
)
from serving.edge.auth.keys import digest_of, parse_keys
from serving.edge.auth.permissions import Need, Role
from serving.errors import PermissionDenied, Unauthenticated

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


@pytest.mark.parametrize("need", Need)
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer none"}])
def test_without_keys_everybody_may_do_everything(need, headers):
    assert Authenticator(None, At2020()).authenticate(headers, need) is ANYONE


@pytest.mark.parametrize("need", [need for need in Need if need is not Need.NOTHING])
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
def test_no_valid_key(headers, need):
    with pytest.raises(Unauthenticated) as caught:
        AUTH.authenticate(headers, need)
    assert not any(word in str(caught.value) for word in (USER, OLD, "wrong", "expired"))


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        (USER, {Need.NOTHING, Need.KEY, Need.USER}),
        (METRICS, {Need.NOTHING, Need.KEY, Need.METRICS}),
        (ADMIN, set(Need)),
    ],
)
def test_roles(key, allowed):
    for need in Need:
        headers = {"authorization": f"bearer {key}"}
        if need in allowed:
            assert AUTH.authenticate(headers, need).tenant in {"alice", "prom", "ops"}
        else:
            with pytest.raises(PermissionDenied, match=need.value):
                AUTH.authenticate(headers, need)


def test_anthropics_header():
    assert AUTH.authenticate({"x-api-key": USER}, Need.USER).tenant == "alice"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_health_is_for_strangers_too(headers):
    assert AUTH.authenticate(headers, Need.NOTHING) is STRANGER


def test_health_knows_who_shows_a_key():
    identity = AUTH.authenticate({"authorization": f"Bearer {ADMIN}"}, Need.NOTHING)
    assert identity.may(Need.ADMIN)


def test_keys_are_asked_for_at_every_call():
    rings = [RING, parse_keys("keys: []")]
    auth = Authenticator(lambda: rings[0], At2020())
    headers = {"authorization": f"Bearer {USER}"}
    assert auth.authenticate(headers, Need.USER)
    rings.pop(0)
    with pytest.raises(Unauthenticated):
        auth.authenticate(headers, Need.USER)


def test_identity_in_a_block():
    assert identity_var.get() is STRANGER
    with identified(ANYONE):
        assert identity_var.get().roles == frozenset(Role)
    assert identity_var.get() is STRANGER
