"""The secrets that ``up`` generates for its parts."""

import stat
from pathlib import Path

import pytest

from serving.cli.local.local_secrets import with_local_secrets
from serving.credentials.tokens import join_metadata, load_join_tokens
from serving.errors import SettingsError
from serving.settings import Settings


def mode(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_router_and_ranks_get_the_same_new_token(tmp_path):
    made = with_local_secrets(Settings(), tmp_path)
    assert made.security.join_token_file == made.link.token_file
    assert mode(made.link.token_file) == 0o600
    ((_, sent),) = join_metadata(made.link.token_file)
    first = load_join_tokens(made.security.join_token_file)
    assert first.accept(sent.removeprefix("Bearer "))
    again = with_local_secrets(Settings(), tmp_path)
    assert load_join_tokens(again.security.join_token_file) != first


def test_a_file_that_others_could_read_is_replaced(tmp_path):
    (tmp_path / "join-token").write_text("x" * 40)
    (tmp_path / "join-token").chmod(0o644)
    made = with_local_secrets(Settings(), tmp_path)
    assert mode(made.link.token_file) == 0o600
    assert "xxxx" not in Path(made.link.token_file).read_text()


def test_an_operators_key_only_where_keys_are_asked_for(tmp_path):
    assert with_local_secrets(Settings(), tmp_path).security.operator_key_file is None
    made = with_local_secrets(Settings(security={"keys_file": "k"}), tmp_path)
    assert mode(made.security.operator_key_file) == 0o600


def test_the_users_own_are_kept(tmp_path):
    mine = Settings(
        security={"join_token_file": "t", "keys_file": "k", "operator_key_file": "o"},
        link={"token_file": "r"},
    )
    assert with_local_secrets(mine, tmp_path) == mine
    shared = with_local_secrets(Settings(security={"join_token_file": "t"}), tmp_path)
    assert shared.link.token_file == "t"
    assert not list(tmp_path.iterdir())


MUTUAL = {"tls_cert_file": "c", "tls_key_file": "k", "tls_client_ca_file": "a"}


def test_client_certificates_without_one_of_its_own_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(SettingsError, match="operator_tls_cert_file"):
        with_local_secrets(Settings(security=MUTUAL), tmp_path)


def test_client_certificates_with_one_of_its_own(tmp_path):
    own = {"operator_tls_cert_file": "oc", "operator_tls_key_file": "ok"}
    made = with_local_secrets(Settings(security={**MUTUAL, **own}), tmp_path)
    assert made.security.tls_client_ca_file == "a"
