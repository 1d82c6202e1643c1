"""Which settings expose an unprotected port."""

import pytest

from serving.edge.auth.security import insecure_binds, is_loopback, require_secure_bind
from serving.errors import SettingsError
from serving.settings import Settings

TLS = {"tls_cert_file": "c", "tls_key_file": "k"}
JOIN_TLS = {"join_tls_cert_file": "c", "join_tls_key_file": "k"}
OUT = "192.0.2.1"


@pytest.mark.parametrize(
    ("router", "security", "wants"),
    [
        pytest.param({}, {}, [], id="loopback"),
        pytest.param({"host": "::1", "join_host": "localhost"}, {}, [], id="other-loopbacks"),
        pytest.param({"host": OUT}, {}, ["keys_file", "tls_cert_file"], id="open"),
        pytest.param({"host": "0.0.0.0"}, {}, ["keys_file", "tls_cert_file"], id="wildcard"),
        pytest.param({"host": "::"}, {}, ["keys_file", "tls_cert_file"], id="wildcard-6"),
        pytest.param({"host": ""}, {}, ["keys_file", "tls_cert_file"], id="empty"),
        pytest.param({"host": "router"}, {}, ["keys_file", "tls_cert_file"], id="name"),
        pytest.param({"host": OUT}, {"keys_file": "f"}, ["tls_cert_file"], id="keys-in-plain"),
        pytest.param({"host": OUT}, TLS, ["keys_file"], id="tls-for-everybody"),
        pytest.param({"host": OUT}, {**TLS, "keys_file": "f"}, [], id="keys-and-tls"),
        pytest.param({"host": OUT}, {**TLS, "tls_client_ca_file": "a"}, [], id="mutual-tls"),
        pytest.param(
            {"host": OUT}, {"keys_file": "f", "tls_elsewhere": True}, [], id="behind-an-ingress"
        ),
        pytest.param({"host": OUT}, {"tls_elsewhere": True}, ["keys_file"], id="ingress-no-keys"),
        pytest.param({"join_host": OUT}, {}, ["join_token_file"], id="join-open"),
        pytest.param({"join_host": OUT}, JOIN_TLS, ["join_token_file"], id="join-tls-only"),
        pytest.param({"join_host": OUT}, {"keys_file": "f"}, ["join_token_file"], id="join-keys"),
        pytest.param({"join_host": OUT}, {"join_token_file": "t"}, [], id="join-token"),
        pytest.param(
            {"join_host": OUT}, {**JOIN_TLS, "join_tls_client_ca_file": "a"}, [], id="join-mutual"
        ),
        pytest.param(
            {"host": OUT, "join_host": OUT},
            {},
            ["keys_file", "tls_cert_file", "join_token_file"],
            id="all-open",
        ),
    ],
)
def test_what_is_missing(router, security, wants):
    settings = Settings(router=router, security=security)
    missing = list(insecure_binds(settings))
    assert len(missing) == len(wants)
    for want, line in zip(wants, missing, strict=True):
        assert f"set security.{want}" in line
    if not wants:
        require_secure_bind(settings)
        return
    with pytest.raises(SettingsError, match="--insecure") as caught:
        require_secure_bind(settings)
    assert "\n" not in str(caught.value)
    insecure = Settings(router=router, security={**security, "insecure": True})
    require_secure_bind(insecure)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("LOCALHOST", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected
