"""Any OpenAI-compatible server, over REST, streaming."""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from loadtest.target import Ask, ErrorKind, Piece, Style, TargetError, Usage, as_text
from serving.client.credentials import NO_ACCESS, Access

_CONNECT_TIMEOUT = 5.0
_COME_BACK = {429, 503}
_SHOWN = 300
"""Characters of a server's words that are kept."""


class RestTarget:
    """A server's base URL. Opens as many connections as there are requests at a time."""

    def __init__(self, url: str, access: Access = NO_ACCESS) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=access.ssl_context() if url.startswith("https:") else True
            ),
            headers=access.headers(),
            trust_env=False,
        )

    async def send(self, ask: Ask, style: Style) -> AsyncIterator[Piece]:
        """Yield the answer as it comes; see ``Target``."""
        path = "/v1/chat/completions" if style.endpoint == "chat" else "/v1/completions"
        limit = aiohttp.ClientTimeout(total=style.timeout, sock_connect=_CONNECT_TIMEOUT)
        began = False
        try:
            async with self._session.post(
                self._url + path,
                json=_body(ask, style),
                headers={"x-session-id": ask.session},
                timeout=limit,
            ) as answer:
                if answer.status != 200:  # noqa: PLR2004
                    kind: ErrorKind = "refused" if answer.status in _COME_BACK else "rejected"
                    said = _words(await answer.text(errors="replace"))
                    raise TargetError(kind, f"HTTP {answer.status}: {said}")
                began = True
                async for event in _events(answer):
                    if event == b"[DONE]":
                        return
                    yield _piece(event)
        except aiohttp.ServerDisconnectedError as error:
            raise TargetError("broken", "the server closed the connection") from error
        except aiohttp.ClientConnectorError as error:
            raise TargetError("connect", self._nobody(error)) from error
        except TimeoutError as error:
            if not began and isinstance(error, aiohttp.ConnectionTimeoutError):
                raise TargetError("connect", f"{self._url} does not answer") from error
            raise TargetError("timeout", f"not done after {style.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TargetError("broken", f"{type(error).__name__}: {error}") from error
        raise TargetError("broken", "the stream ended without [DONE]")

    async def models(self) -> list[str]:
        """Return what /v1/models lists; see ``Target``."""
        content = await self.get_json("/v1/models")
        try:
            return [str(model["id"]) for model in content["data"]]
        except (KeyError, TypeError) as error:
            raise TargetError(
                "rejected", f"{self._url}/v1/models answers, but not as an OpenAI server does"
            ) from error

    async def get_json(self, path: str) -> Any:
        """Return the body of GET ``path``.

        Raises:
            TargetError: there is none.
        """
        limit = aiohttp.ClientTimeout(total=2 * _CONNECT_TIMEOUT, sock_connect=_CONNECT_TIMEOUT)
        try:
            async with self._session.get(self._url + path, timeout=limit) as answer:
                text = await answer.text(errors="replace")
                if answer.status != 200:  # noqa: PLR2004
                    raise TargetError(
                        "rejected", f"{self._url}{path}: HTTP {answer.status}: {_words(text)}"
                    )
                return json.loads(text)
        except ValueError as error:  # of the URL, or of the body
            raise TargetError("rejected", f"{self._url}{path}: {error}") from error
        except TimeoutError as error:
            raise TargetError("connect", f"{self._url} does not answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TargetError("connect", self._nobody(error)) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def _nobody(self, error: Exception) -> str:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number and number > 0 else str(error)
        return f"nobody answers at {self._url} ({reason})"


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events. Lines may be of any length."""
    rest = b""
    async for data in answer.content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _body(ask: Ask, style: Style) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": style.model,
        "max_tokens": ask.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if style.endpoint == "chat":
        body["messages"] = [
            {"role": message.role, "content": message.content} for message in ask.messages
        ]
    else:
        body["prompt"] = as_text(ask.messages)
    if style.temperature is not None:
        body["temperature"] = style.temperature
    if style.ignore_eos:
        body["ignore_eos"] = True
    return body


class _Part(msgspec.Struct, frozen=True, gc=False):
    """Text of a chunk's delta (chat), or of its choice (completions)."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    text: str | None = None

    def __str__(self) -> str:
        # Servers call the field by one name, by the other, or send it under both.
        thought = self.reasoning or self.reasoning_content or ""
        return thought + (self.content or self.text or "")


class _Choice(msgspec.Struct, frozen=True, gc=False):
    delta: _Part | None = None
    text: str | None = None


class _Chunk(msgspec.Struct, frozen=True, gc=False):
    """What is read of an ordinary chunk."""

    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def _piece(event: bytes) -> Piece:
    try:
        chunk = _decode(event)
    except msgspec.MsgspecError:  # another form, or no JSON at all
        return _odd_piece(event)
    if chunk.error is not None:
        raise TargetError("broken", _words(event.decode("utf-8", "replace")))
    usage = None if chunk.usage is None else _usage(chunk.usage)
    text = ""
    for choice in chunk.choices or ():
        text += (choice.text or "") if choice.delta is None else str(choice.delta)
    return Piece(text, usage)


def _odd_piece(event: bytes) -> Piece:
    try:
        content = json.loads(event)
        if content.get("error") is not None:
            raise TargetError("broken", _words(event.decode("utf-8", "replace")))
        text = ""
        for choice in content.get("choices") or ():
            delta = choice.get("delta") or choice
            text += delta.get("reasoning") or delta.get("reasoning_content") or ""
            text += delta.get("content") or delta.get("text") or ""
        usage = content.get("usage")
        return Piece(text, None if usage is None else _usage(usage))
    except (ValueError, TypeError, AttributeError) as error:
        raise TargetError("broken", f"not a chunk: {event[:_SHOWN]!r}") from error


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        details.get("cached_tokens") or 0,
    )


def _words(body: str) -> str:
    try:
        error = json.loads(body)["error"]
        body = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(body.split())[:_SHOWN]
