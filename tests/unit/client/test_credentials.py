"""Credentials from flags and from the local run."""

import ssl
from pathlib import Path

import pytest
import yaml

from serving.client.credentials import NO_ACCESS, Access, access_from, access_of, local_access
from serving.errors import SettingsError
from serving.settings import Settings


def left(folder: Path, **security: object) -> Path:
    (folder / "settings.yaml").write_text(yaml.safe_dump({"security": security}))
    return folder


def test_nothing_left_is_no_access(tmp_path):
    assert local_access(tmp_path) == NO_ACCESS
    assert NO_ACCESS.headers() == {}
    assert NO_ACCESS.metadata() == ()


def test_the_operators_key_is_found(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    folder = left(tmp_path, keys_file="k", operator_key_file=str(tmp_path / "key"))
    access = local_access(folder)
    assert access.headers() == {"authorization": "Bearer secret"}
    assert "secret" not in repr(access)


def test_without_keys_the_operators_key_is_not_needed(tmp_path):
    assert local_access(left(tmp_path, operator_key_file="/gone")) == NO_ACCESS


def test_what_is_given_wins(tmp_path):
    (tmp_path / "key").write_text("local")
    folder = left(
        tmp_path, keys_file="k", operator_key_file=str(tmp_path / "key"), tls_cert_file="own.pem"
    )
    assert access_from(None, None, None, folder) == Access("local", "own.pem", pinned=True)
    assert access_from("mine", "ca.pem", None, folder) == Access("mine", "ca.pem")
    assert access_from(None, None, None, None) == NO_ACCESS


def test_a_key_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SettingsError, match="gone"):
        local_access(left(tmp_path, keys_file="k", operator_key_file=str(tmp_path / "gone")))


def test_a_broken_settings_file_is_named(tmp_path):
    (tmp_path / "settings.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match=r"settings\.yaml"):
        local_access(tmp_path)


def test_default_settings_need_nothing():
    assert access_of(Settings().security.model_dump()) == NO_ACCESS


def test_authorities_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "text").write_text("no certificate")
    for name in ("text", "none"):
        with pytest.raises(SettingsError, match=name):
            Access(ca_file=str(tmp_path / name)).ssl_context()


def test_a_client_certificate_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "text").write_text("no certificate")
    for name in ("text", "none"):
        file = str(tmp_path / name)
        with pytest.raises(SettingsError, match=name):
            Access(cert_file=file, key_file=file).ssl_context()


def test_the_operators_certificate_is_found_and_a_given_one_wins(tmp_path):
    left(tmp_path, operator_tls_cert_file="oc", operator_tls_key_file="ok")
    assert local_access(tmp_path) == Access(cert_file="oc", key_file="ok")
    given = access_from(None, None, "mine.pem", tmp_path)
    assert (given.cert_file, given.key_file) == ("mine.pem", "mine.pem")


def test_names_are_checked_unless_the_very_certificate_is_known():
    assert Access().ssl_context().check_hostname
    pinned = Access(pinned=True).ssl_context()
    assert (pinned.check_hostname, pinned.verify_mode) == (False, ssl.CERT_REQUIRED)
