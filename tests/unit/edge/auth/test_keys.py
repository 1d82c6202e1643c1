"""The key file: valid content, errors, and what errors never quote."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission.quotas import TenantLimits
from serving.edge.auth.key_file import Role
from serving.edge.auth.keys import (
    KeyRing,
    budgets_with,
    digest_of,
    limits_with,
    load_keys,
    new_key,
    parse_keys,
    watch_keys,
)
from serving.errors import SettingsError
from serving.ledger.budget import Budget, Period, Scope
from serving.request_context import Priority, ReasoningPolicy
from serving.settings import SecuritySettings

KEY = "moe-a-key"
NOW = 1_800_000_000.0
DEFAULT = TenantLimits(requests_per_minute=10, concurrent_streams=2)


def ring(entry: str = "", tenants: str = "") -> KeyRing:
    return parse_keys(
        f'keys:\n  - {{id: a, tenant: alice, hash: "{digest_of(KEY)}"{entry}}}\n'
        f"tenants: {{{tenants}}}\n"
    )


def test_a_key_is_found_by_itself_only():
    keys = ring()
    found = keys.find(KEY, NOW)
    assert found is not None
    assert (found.id, found.tenant) == ("a", "alice")
    for other in ("", KEY + " ", KEY.upper(), digest_of(KEY), "x" * 10_000, "\udcff"):
        assert keys.find(other, NOW) is None


def test_what_a_key_may_do_by_default():
    found = ring().find(KEY, NOW)
    assert (found.roles, found.priorities, found.expires) == (
        {Role.USER},
        frozenset(Priority),
        None,
    )


def test_what_a_key_may_be_given():
    found = ring(", roles: [admin, explain], priorities: [batch]").find(KEY, NOW)
    assert (found.roles, found.priorities) == ({Role.ADMIN, Role.EXPLAIN}, {Priority.BATCH})


@pytest.mark.parametrize(
    ("expires", "moment"),
    [
        pytest.param("2027-01-31", 1801353600.0, id="date"),
        pytest.param('"2027-01-31"', 1801353600.0, id="quoted"),
        pytest.param("2027-01-31T01:00:00+01:00", 1801353600.0, id="with-zone"),
        pytest.param("2027-01-31 00:00:00", 1801353600.0, id="without-zone-is-utc"),
    ],
)
def test_expiry(expires, moment):
    keys = ring(f", expires: {expires}")
    assert keys.find(KEY, moment - 1) is not None
    assert keys.find(KEY, moment) is None


def test_limits_are_the_files_over_the_defaults():
    keys = ring(tenants="alice: {requests_per_minute: 600, weight: 2}, bob: {}")
    assert keys.limits_of("alice", DEFAULT) == TenantLimits(600, None, 2, 2.0)
    assert keys.limits_of("bob", DEFAULT) == keys.limits_of("carol", DEFAULT) == DEFAULT


def test_a_limit_can_be_lifted():
    keys = ring(tenants="alice: {requests_per_minute: null}")
    assert keys.limits_of("alice", DEFAULT).requests_per_minute is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("keys: [", "line", id="not-yaml"),
        pytest.param("- a", "valid dictionary", id="a-list"),
        pytest.param("kyes: []", "kyes", id="misspelt"),
        pytest.param("keys: [{id: a, tenant: b}]", "keys.0.hash", id="no-hash"),
        pytest.param(
            "keys: [{id: a, tenant: b, hash: moe-secret}]", "keys.0.hash", id="key-not-hash"
        ),
        pytest.param(
            f'keys: [{{id: a, tenant: b, hash: "{digest_of("x")}", roles: [root]}}]',
            "keys.0.roles",
            id="no-such-role",
        ),
        pytest.param(
            f'keys: [{{id: a, tenant: b, hash: "{digest_of("x")}", priorities: [urgent]}}]',
            "keys.0.priorities",
            id="no-such-priority",
        ),
        pytest.param(
            f'keys: [{{id: a, tenant: b, hash: "{digest_of("x")}", priorities: []}}]',
            "keys.0.priorities",
            id="no-priority-at-all",
        ),
        pytest.param(
            f'keys: [{{id: a, tenant: "b c", hash: "{digest_of("x")}"}}]',
            "keys.0.tenant",
            id="tenant-with-space",
        ),
        pytest.param(
            f'keys: [{{id: a, tenant: b, hash: "{digest_of("x")}"}}, '
            f'{{id: a, tenant: b, hash: "{digest_of("y")}"}}]',
            "duplicate key id a",
            id="same-id",
        ),
        pytest.param(
            f'keys: [{{id: a, tenant: b, hash: "{digest_of("x")}"}}, '
            f'{{id: c, tenant: b, hash: "{digest_of("x")}"}}]',
            "a and c have the same hash",
            id="same-key",
        ),
        pytest.param("tenants: {a: {weight: 0}}", "tenants.a.weight", id="no-weight"),
        pytest.param("tenants: {a: {weight: .inf}}", "tenants.a.weight", id="all-the-weight"),
        pytest.param("tenants: {a: {tokens: 1}}", "tenants.a.tokens", id="no-such-limit"),
        pytest.param("keys: [{expires: 2027-13-01}]", "YAML", id="no-such-month"),
        pytest.param("keys: [{id: !!int secret}]", "YAML", id="no-number"),
        pytest.param("keys: [{expires: !!timestamp secret}]", "YAML", id="no-time"),
        pytest.param("keys: " + "[" * 100_000, "line 1", id="nested-without-end"),
    ],
)
def test_what_is_wrong_is_named_and_not_quoted(text, problem):
    with pytest.raises(SettingsError) as caught:
        parse_keys(text, "keys.yaml")
    received = str(caught.value)
    assert problem in received
    assert received.startswith("keys.yaml")
    assert "secret" not in received
    assert "sha256:" + "0" not in received
    assert caught.value.__cause__ is None  # its text has the input


@pytest.mark.parametrize("text", ["", "keys: []", "keys:\ntenants:\n", "# nothing\n"])
def test_a_file_without_keys_lets_nobody_in(text):
    assert parse_keys(text).find(KEY, NOW) is None


def test_hashes_are_sha256_of_the_whole_key():
    assert digest_of(KEY) == "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()


def test_hashes_are_not_shown():
    assert digest_of(KEY) not in repr(ring().find(KEY, NOW))


def test_new_keys_are_random_and_long():
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("moe-") and len(key) >= 47 for key in made)


@given(st.text(max_size=300))
def test_nothing_that_can_be_sent_is_a_key_or_an_error(text):
    assert ring().find(text, NOW) is None or text == KEY


def test_the_operators_key_comes_from_a_file_of_its_own(tmp_path):
    (tmp_path / "keys.yaml").write_text("keys: []")
    (tmp_path / "operator").write_text("o" * 43 + "\n")
    keys = load_keys(str(tmp_path / "keys.yaml"), str(tmp_path / "operator"))
    found = keys.find("o" * 43, NOW)
    assert (found.id, found.roles) == ("operator", {Role.ADMIN})


def test_without_a_keys_file_there_are_no_keys(tmp_path):
    (tmp_path / "operator").write_text("o" * 43)
    settings = SecuritySettings(operator_key_file=str(tmp_path / "operator"))
    assert watch_keys(settings) is None
    assert limits_with(None, lambda _: DEFAULT)("alice") == DEFAULT


def test_limits_follow_the_file(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text("tenants: {alice: {weight: 2}}")
    watched = watch_keys(SecuritySettings(keys_file=str(file)))
    limits = limits_with(watched, lambda _: DEFAULT)
    assert limits("alice").weight == 2
    file.write_text("tenants: {alice: {weight: 33}}")
    assert watched.refresh()
    assert limits("alice").weight == 33


def test_roles_are_what_is_documented():
    assert {role.value for role in Role} == {"user", "metrics", "explain", "cost", "admin"}


BUDGETS = f"""
keys:
  - {{id: a-1, tenant: alice, hash: "{digest_of(KEY)}", budgets: {{day: {{soft: 0.1, hard: 2}}}}}}
tenants: {{alice: {{budgets: {{month: {{hard: 100}}}}}}}}
"""


def test_budgets_of_a_request_are_those_of_its_tenant_and_its_key():
    ring = parse_keys(BUDGETS)
    month = Budget(Scope.TENANT, "alice", Period.MONTH, hard=100 * 10**9)
    day = Budget(Scope.KEY, "a-1", Period.DAY, soft=10**8, hard=2 * 10**9)
    assert ring.budgets_of("alice", "a-1") == (month, day)
    assert ring.budgets_of("alice", None) == (month,)
    assert ring.budgets_of("bob", "b-1") == ()
    assert parse_keys("keys: []").budgets_of("alice", "a-1") == ()
    assert ring.limits_of("alice", DEFAULT) == DEFAULT


@pytest.mark.parametrize(
    ("budgets", "problem"),
    [
        ("{day: {}}", "must have soft, hard or both"),
        ("{day: {soft: 2, hard: 1}}", "soft must not be above hard"),
        ("{week: {hard: 1}}", "budgets.week"),
        ("{day: {hard: -1}}", "greater than or equal"),
        ("{day: {hard: .nan}}", "finite"),
    ],
)
def test_broken_budgets_are_refused(budgets, problem):
    with pytest.raises(SettingsError, match=problem):
        parse_keys(f"tenants: {{alice: {{budgets: {budgets}}}}}")


def test_budgets_that_cannot_be_counted_leave_the_last_valid_file_in_effect(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text("tenants: {alice: {weight: 2}}")
    watched = watch_keys(SecuritySettings(keys_file=str(file)), "there is no ledger")
    file.write_text(BUDGETS)
    assert not watched.refresh()
    assert budgets_with(watched)("alice", "a-1") == ()
    assert budgets_with(None)("alice", "a-1") == ()
    with pytest.raises(SettingsError, match=r"keys\.yaml: there is no ledger"):
        watch_keys(SecuritySettings(keys_file=str(file)), "there is no ledger")


def test_reasoning_of_a_key_replaces_that_of_its_tenant():
    tenant = "alice: {reasoning: {thinking_token_budget: 5, max_reasoning_effort: low}}"
    key = ring(", reasoning: {thinking_token_budget: 7, hidden: true}", tenant).find(KEY, NOW)
    assert key.reasoning == ReasoningPolicy(
        thinking_token_budget=7, max_reasoning_effort="low", hidden=True
    )
    assert ring("", tenant).find(KEY, NOW).reasoning.thinking_token_budget == 5
    assert ring().find(KEY, NOW).reasoning is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("thinking_token_budget: 3, max_thinking_token_budget: 2", "must not be above max_think"),
        ("reasoning_effort: high, max_reasoning_effort: low", "must not be above max_reasoning"),
        ("reasoning_effort: huge", "reasoning.reasoning_effort"),
        ("max_thinking_token_budget: -1", "greater than or equal"),
        ("visible: false", "reasoning.visible"),
    ],
)
def test_broken_reasoning_is_refused(fields, problem):
    with pytest.raises(SettingsError, match=problem):
        parse_keys(f"tenants: {{alice: {{reasoning: {{{fields}}}}}}}")


def test_a_name_that_occurs_twice_is_refused_with_its_line():
    """The usual YAML readers would use the second ``keys`` and ignore the first."""
    with pytest.raises(SettingsError, match=r"keys\.yaml, line 3: a name occurs twice"):
        parse_keys("keys: []\ntenants: {}\nkeys: []\n", "keys.yaml")
