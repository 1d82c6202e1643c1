"""RFC 9112: one row per rule."""

import pytest

from serving.edge.rest.head_rules import head_refusal, origin_form

HOST, CHUNKED = (b"host", b"x"), (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    ("version", "headers", "status"),
    [
        ("1.1", [HOST], None),
        ("1.1", [(b"host", b"")], None),
        ("1.1", [(b"host", b"router.moe-serving.svc:8000")], None),
        ("1.1", [(b"host", b"[::1]:8000")], None),
        ("1.1", [(b"host", b"x:")], None),
        ("1.1", [], b"400"),
        ("1.1", [HOST, HOST], b"400"),
        ("1.1", [(b"host", b"a b")], b"400"),
        ("1.1", [(b"host", b"user@x")], b"400"),
        ("1.1", [(b"host", b"x/path")], b"400"),
        ("1.1", [(b"host", b"x, y")], b"400"),
        ("1.1", [(b"host", b"x:port")], b"400"),
        ("1.0", [], None),
        ("1.0", [HOST, HOST], b"400"),
        ("1.0", [CHUNKED], b"400"),
        ("0.9", [], b"505"),
        ("2.0", [HOST], b"505"),
        ("1.1", [HOST, CHUNKED], None),
        ("1.1", [HOST, (b"transfer-encoding", b" Chunked ")], None),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], b"501"),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip"), CHUNKED], b"501"),
        ("1.1", [HOST, CHUNKED, CHUNKED], b"501"),
    ],
)
def test_the_rules_for_heads(version, headers, status):
    for method in (b"GET", b"HEAD"):
        answer = head_refusal(version, method, headers)
        if status is None:
            assert answer == b""
        else:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            assert bool(body) is (method == b"GET")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/livez?to=http://x", b"/livez?to=http://x"),
        (b"http://x/livez", b"http://x/livez"),
        (b"http://x", b"/"),
        (b"https://x:443?a=/b", b"/?a=/b"),
        (b"*", b"*"),
    ],
)
def test_the_form_of_targets(target, path):
    assert origin_form(target) == path
