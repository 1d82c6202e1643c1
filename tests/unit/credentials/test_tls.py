"""Certificates: which files fit together, and handshakes with the current certificate."""

import ssl

import pytest
import trustme

from serving.credentials.tls import (
    TlsFiles,
    client_port_tls,
    following_context,
    join_port_tls,
    load_dial_tls,
    load_tls,
    watch_tls,
)
from serving.errors import SettingsError
from serving.settings import LinkSettings, SecuritySettings
from tests.unit.credentials.certificates import issue

NAME = "127.0.0.1"


def client_context(files, own=None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.ca))
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = NAME) -> str:
    """Shake hands in memory; return the serial number of the server's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    done = set()
    for _ in range(10):
        for side in (theirs, ours):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
        if len(done) == 2:
            # With TLS 1.3 a client learns only here that its certificate was rejected.
            ours.write(b"x")
            theirs.read(1)
            return theirs.getpeercert()["serialNumber"]
    raise AssertionError("the handshake does not end")


def test_a_new_certificate_is_in_force_for_the_next_handshake(tmp_path):
    ca = trustme.CA()
    files = issue(tmp_path, ca)
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key)))
    server, client = following_context(watched), client_context(files)
    first = handshake(server, client)
    assert handshake(server, client) == first
    issue(tmp_path, ca)
    assert watched.refresh()
    assert handshake(server, client) != first


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_and_clients_that_name_no_host(tmp_path, version):
    files = issue(tmp_path, trustme.CA())
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key)))
    client = client_context(files)
    client.check_hostname = False
    client.minimum_version = client.maximum_version = version
    assert handshake(following_context(watched), client, None)


def test_a_pair_that_does_not_fit_leaves_the_old_one(tmp_path):
    ca = trustme.CA()
    files = issue(tmp_path, ca)
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key)))
    server, client = following_context(watched), client_context(files)
    first = handshake(server, client)
    files.key.write_bytes(ca.issue_cert("other").private_key_pem.bytes())
    assert not watched.refresh()
    assert handshake(server, client) == first


def test_clients_must_show_a_certificate_of_the_authority(tmp_path):
    ca, others = trustme.CA(), trustme.CA()
    files = issue(tmp_path, ca)
    mine, stranger = issue(tmp_path, ca, "mine"), issue(tmp_path, others, "stranger")
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key), str(files.ca)))
    server = following_context(watched)
    assert handshake(server, client_context(files, mine))
    for own in (None, stranger):
        with pytest.raises(ssl.SSLError):
            handshake(server, client_context(files, own))


def test_an_authority_that_is_taken_away_lets_nobody_in(tmp_path):
    ca, old, new = trustme.CA(), trustme.CA(), trustme.CA()
    files = issue(tmp_path, ca)
    leaving, coming = issue(tmp_path, old, "old"), issue(tmp_path, new, "new")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(old.cert_pem.bytes())
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key), str(trusted)))
    server = following_context(watched)
    assert handshake(server, client_context(files, leaving))
    trusted.write_bytes(new.cert_pem.bytes() + b"\n")
    assert watched.refresh()
    assert handshake(server, client_context(files, coming))
    with pytest.raises(ssl.SSLError):
        handshake(server, client_context(files, leaving))


@pytest.mark.parametrize("broken", ["cert", "key", "client_ca"])
@pytest.mark.parametrize("how", ["missing", "text"])
def test_what_cannot_be_used_is_named(tmp_path, broken, how):
    files = issue(tmp_path, trustme.CA())
    paths = {"cert": str(files.cert), "key": str(files.key), "client_ca": str(files.ca)}
    paths[broken] = str(tmp_path / "broken")
    if how == "text":
        (tmp_path / "broken").write_text("no certificate")
    with pytest.raises(SettingsError, match="broken"):
        load_tls(TlsFiles(**paths))


def test_private_keys_are_not_shown(tmp_path):
    files = issue(tmp_path, trustme.CA())
    assert "PRIVATE" not in repr(load_tls(TlsFiles(str(files.cert), str(files.key))))
    settings = LinkSettings(
        tls_ca_file=str(files.ca), tls_cert_file=str(files.cert), tls_key_file=str(files.key)
    )
    assert "PRIVATE" not in repr(load_dial_tls(settings))


def test_settings_without_files_mean_plain_text():
    assert client_port_tls(SecuritySettings()) is None
    assert join_port_tls(SecuritySettings()) is None
    assert load_dial_tls(LinkSettings()) is None


def test_each_port_has_its_own_files():
    settings = SecuritySettings(
        tls_cert_file="c", tls_key_file="k", tls_client_ca_file="a",
        join_tls_cert_file="jc", join_tls_key_file="jk",
    )  # fmt: skip
    assert client_port_tls(settings) == TlsFiles("c", "k", "a")
    assert join_port_tls(settings) == TlsFiles("jc", "jk")
