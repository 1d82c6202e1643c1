"""Tests wait as long as a busy machine needs: none of their clients has a short default timeout."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
METHODS = {"AsyncClient", "Client", "delete", "get", "patch", "post", "put", "request", "stream"}
"""Functions and classes of httpx with a default timeout of 5 s."""
NO_NETWORK = {"app", "transport"}
"""Arguments of clients that open no connection."""


def impatient(tree):
    """Return the lines of calls of httpx that do not set a timeout."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) != "httpx" or node.func.attr not in METHODS:
            continue
        words = {word.arg for word in node.keywords}
        if not words & {"timeout", None, *NO_NETWORK}:
            yield node.lineno


def test_every_client_of_httpx_has_a_timeout():
    found = {}
    for path in sorted(TESTS.rglob("*.py")):
        text = path.read_text("utf-8")
        if "httpx." in text and (lines := list(impatient(ast.parse(text)))):
            found[str(path.relative_to(TESTS))] = lines
    assert found == {}


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        pytest.param("httpx.get(url)", [1], id="none"),
        pytest.param("httpx.Client(base_url=url)", [1], id="client"),
        pytest.param("httpx.get(url, timeout=9)", [], id="set"),
        pytest.param("httpx.Client(transport=t)", [], id="no network"),
    ],
)
def test_what_counts(code, lines):
    assert list(impatient(ast.parse(code))) == lines
