"""Look-ups: an answer, an error with its reason, and no wait for a hanging resolver."""

import socket
import threading

import pytest

from serving.engine.fabric import names
from tests.support.waiting import PATIENCE


async def test_an_address_resolves_to_itself():
    assert await names.resolve("127.0.0.1", 10) == "127.0.0.1"
    assert await names.resolve("::1", 10) == "::1"


async def test_a_name_that_is_not_there(monkeypatch):
    def look_up(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(names.socket, "getaddrinfo", look_up)
    with pytest.raises(OSError, match=r"the name pod-1.svc does not resolve: Name or service"):
        await names.resolve("pod-1.svc", 10)


async def test_a_name_server_that_does_not_answer(monkeypatch):
    let_go = threading.Event()

    def look_up(*_, **__):
        let_go.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(names.socket, "getaddrinfo", look_up)
    try:
        with pytest.raises(OSError, match=r"lookup of pod-1.svc timed out after 0.1 s"):
            await names.resolve("pod-1.svc", 0.1)
    finally:
        let_go.set()
