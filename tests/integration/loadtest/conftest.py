"""Tiny OpenAI-like servers in this process, on real ports, that fail on demand."""

import asyncio
import contextlib
import json
import socket

import pytest
import uvicorn


class TinyServer:
    """Answers each chat with words; closes connections after ``break_after`` requests."""

    def __init__(self):
        self.asked = []
        self.break_after = None
        self.status = 200
        self.models = {"data": [{"id": "tiny"}]}
        self.done = True
        self.dead = False
        self.cut = None
        self.asked_for = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if self.dead:
            return self.cut()
        if scope["path"] == "/v1/models":
            return await self._reply(send, 200, self.models)
        if scope["path"] != "/v1/chat/completions":
            return await self._reply(send, 404, {"error": {"message": "no such page"}})
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body)
        self.asked.append(request)
        self.asked_for.set()
        if self.status != 200:
            return await self._reply(send, self.status, {"error": {"message": "not today"}})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(request["max_tokens"]):
            if self.break_after is not None and len(self.asked) > self.break_after:
                return None  # uvicorn closes the connection of an unfinished response
            await self._event(send, {"choices": [{"delta": {"content": "word "}}]})
            await asyncio.sleep(0)
        words = sum(len(message["content"].split()) for message in request["messages"])
        usage = {"prompt_tokens": 5 + words, "completion_tokens": request["max_tokens"]}
        await self._event(send, {"choices": [], "usage": usage})
        last = b"data: [DONE]\n\n" if self.done else b""
        await send({"type": "http.response.body", "body": last})
        return None

    async def _event(self, send, content):
        body = b"data: " + json.dumps(content).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _reply(self, send, status, content):
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})


class Server:
    """A running tiny server."""

    def __init__(self, app):
        self.app = app
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none", loop="none")
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext
        app.cut = self._cut
        self._task = asyncio.create_task(self._server.serve([self._socket]))

    async def die(self):
        """Stop at once."""
        self._server.should_exit = self._server.force_exit = True
        await self._task
        self._socket.close()
        # uvicorn misses a connection that was accepted just now: close it here.
        self.app.dead = True
        self._cut()

    def _cut(self):
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()


@pytest.fixture
async def server():
    running = Server(TinyServer())
    yield running
    await running.die()
