"""``moe-serving keys``: output and file; other entries are unchanged."""

import stat

import pytest
import yaml

from serving.cli.main import main
from serving.cli.ops.keys import add_key, key_lines, with_entry
from serving.edge.auth.keys import digest_of, parse_keys
from serving.errors import SettingsError

NOW = 1_800_000_000.0
ENTRY = {"id": "new", "tenant": "t", "roles": ["user"], "hash": digest_of("new")}


def test_a_key_is_shown_once_and_its_hash_is_kept(tmp_path, capsys):
    file = tmp_path / "keys.yaml"
    assert main(["keys", "new", "--tenant", "alice", "--role", "admin", "--file", str(file)]) == 0
    shown = capsys.readouterr()
    key = shown.out.strip()
    assert "\n" not in key
    assert key not in shown.err
    text = file.read_text()
    assert key not in text
    found = parse_keys(text).find(key, NOW)
    assert (found.id, found.tenant, found.roles) == ("alice-1", "alice", {"admin"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    assert main(["keys", "list", "--file", str(file)]) == 0
    listed = capsys.readouterr().out
    assert "alice-1" in listed
    assert "sha256" not in listed
    assert key not in listed


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("keys:\n", id="no-keys"),
        pytest.param("keys: []  # none yet\n", id="empty-list"),
        pytest.param("tenants:\n  t: {weight: 2}\n", id="only-tenants"),
        pytest.param(f"keys:\n  - {{id: a, tenant: t, hash: '{digest_of('a')}'}}\n", id="flow"),
        pytest.param(f"keys:\n- id: a\n  tenant: t\n  hash: {digest_of('a')}\n", id="no-indent"),
        pytest.param(
            f"keys:\n\n    # mine\n    - id: a\n      tenant: t\n      hash: {digest_of('a')}\n",
            id="deep-with-comment",
        ),
        pytest.param(
            f"tenants: {{}}\nkeys:\n  - id: a\n    tenant: t\n    hash: {digest_of('a')}\n# end\n",
            id="in-the-middle",
        ),
    ],
)
def test_an_entry_is_added_and_the_rest_stays(text):
    before = yaml.safe_load(text) or {}
    after_text = with_entry(text, ENTRY)
    after = yaml.safe_load(after_text)
    assert after == {**before, "keys": [ENTRY, *(before.get("keys") or ())]}
    assert [line for line in text.splitlines() if "#" in line and "keys:" not in line] == [
        line for line in after_text.splitlines() if "#" in line and "keys:" not in line
    ]
    # A second one fits as well.
    assert len(yaml.safe_load(with_entry(after_text, {**ENTRY, "id": "b"}))["keys"]) == (
        len(after["keys"]) + 1
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("keys: [{id: a", id="broken"),
        pytest.param(
            f"keys: [{{id: a, tenant: t, hash: '{digest_of('a')}'}}]\n", id="a-list-in-one-line"
        ),
    ],
)
def test_a_file_that_cannot_be_added_to_stays_as_it_is(tmp_path, text):
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        add_key(file, {"id": "", "tenant": "t", "roles": ["user"]})
    assert file.read_text() == text


def test_ids_are_free_and_given_ones_must_be(tmp_path):
    file = tmp_path / "keys.yaml"
    entry = {"id": "", "tenant": "t", "roles": ["user"]}
    assert [add_key(file, entry)[1] for _ in range(3)] == ["t-1", "t-2", "t-3"]
    with pytest.raises(SettingsError, match="t-2"):
        add_key(file, {**entry, "id": "t-2"})


def test_the_file_behind_a_link_is_replaced_and_keeps_its_mode(tmp_path):
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("keys: []\n")
    real.chmod(0o640)
    link.symlink_to(real)
    add_key(link, {"id": "", "tenant": "t", "roles": ["user"]})
    assert link.is_symlink()
    assert len(parse_keys(real.read_text()).keys) == 1
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_table_says_what_has_expired():
    ring = parse_keys(
        f"keys:\n  - {{id: a, tenant: t, hash: '{digest_of('a')}', expires: 2020-01-01}}\n"
        f"  - {{id: b, tenant: t, hash: '{digest_of('b')}', priorities: [batch]}}\n"
    )
    header, first, second = key_lines(ring, NOW)
    assert header.split() == ["id", "tenant", "roles", "priorities", "expires"]
    assert first.endswith("2020-01-01 00:00Z (expired)")
    assert second.split() == ["b", "t", "user", "batch", "never"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["new"], "--tenant", id="no-tenant"),
        pytest.param(["new", "--tenant", "a b"], "tenant", id="bad-tenant"),
        pytest.param(["new", "--tenant", "a", "--expires", "soon"], "expires", id="bad-date"),
        pytest.param(["new", "--tenant", "a", "--priority", "x"], "priorities", id="bad-priority"),
        pytest.param(["list"], "keys new", id="no-file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, capsys, arguments, said):
    file = tmp_path / "keys.yaml"
    assert main(["keys", *arguments, "--file", str(file)]) == 1
    assert said in capsys.readouterr().err
    assert not file.exists()
