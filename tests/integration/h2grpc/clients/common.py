"""Shared code of the Python client programs: read calls, make them, report results.

Imported in environments that contain only the client under test and protobuf.
"""

import asyncio
import hashlib
import json
import sys
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.h2grpc.messages import PACKAGE, Messages

SHOWN_KEYS = ("x-grpc-test-", "grpc-status-details-bin")
"""Metadata that is compared; additions of the libraries are ignored."""
_SHOWN_WHOLE = 64
ATTEMPTS = 200


def shown(message: bytes) -> str:
    """Return the report of a message: base64, or length and hash."""
    if len(message) <= _SHOWN_WHOLE:
        return b64encode(message).decode()
    return f"{len(message)} bytes, {hashlib.sha256(message).hexdigest()[:16]}"


@dataclass
class Call:
    """A call to make."""

    path: str
    kind: str
    """Kind in grpc's Python API: unary_stream and so on."""
    requests: list[Any]
    request_class: Any
    answer_class: Any
    metadata: list[tuple[str, str | bytes]]
    timeout: float
    compressed: bool
    lockstep: bool
    answers: list[int]
    unfinished: bool
    cancel_after: int | None

    @classmethod
    def of(cls, raw: dict[str, Any], messages: Messages) -> "Call":
        """Parse a call from the data of cases.py."""
        method = messages.service.methods_by_name[raw["method"]]
        request_class = getattr(messages, method.input_type.name)
        sides = (method.client_streaming, method.server_streaming)
        return cls(
            path=f"/{PACKAGE}.{raw.get('service', 'TestService')}/{method.name}",
            kind="_".join("stream" if streams else "unary" for streams in sides),
            requests=[request_class.FromString(b64decode(each)) for each in raw["requests"]],
            request_class=request_class,
            answer_class=getattr(messages, method.output_type.name),
            metadata=[
                (key, b64decode(value) if key.endswith("-bin") else value)
                for key, value in raw.get("metadata", ())
            ],
            timeout=raw.get("timeout", 60.0),
            compressed=any(raw.get("compressed", ())),
            lockstep=raw.get("lockstep", False),
            answers=raw.get("answers", []),
            unfinished=raw.get("unfinished", False),
            cancel_after=raw.get("cancel_after"),
        )

    @property
    def streams_up(self) -> bool:
        """Whether the client sends a stream."""
        return self.kind.startswith("stream")


@dataclass
class Outcome:
    """The result of a call."""

    code: str = "OK"
    details: str = ""
    replies: list[str] = field(default_factory=list)
    initial: list[tuple[str, str]] = field(default_factory=list)
    trailing: list[tuple[str, str]] = field(default_factory=list)

    def got(self, message: Any) -> None:
        """Record an answer."""
        self.replies.append(shown(message.SerializeToString()))

    def keep(self, initial: Any, trailing: Any) -> None:
        """Record metadata; values are bytes, or base64 for keys that end in -bin."""
        self.initial = _kept(initial)
        self.trailing = _kept(trailing)


def _kept(metadata: Any) -> list[tuple[str, str]]:
    kept: dict[str, str] = {}
    for key, value in metadata or ():
        if key.startswith(SHOWN_KEYS):
            if isinstance(value, bytes):
                text = b64encode(value).decode() if key.endswith("-bin") else value.decode()
            else:
                text = value + "=" * (-len(value) % 4) if key.endswith("-bin") else value
            # Some clients join values of the same key.
            kept[key] = f"{kept[key]}, {text}" if key in kept else text
    return sorted(kept.items())


class Client:
    """A client library under test."""

    def __init__(self, target: dict[str, Any]) -> None:
        self.target = target
        self.tls = target["tls"]
        """Paths of ca, and with mTLS of cert and key."""

    def open(self) -> Any:
        """Return a channel."""
        raise NotImplementedError

    async def close(self, channel: Any) -> None:
        """Close a channel."""
        raise NotImplementedError

    async def perform(self, channel: Any, call: Call, outcome: Outcome) -> None:
        """Make a call, and record its result."""
        raise NotImplementedError


async def run(
    client_class: type[Client], spec: dict[str, Any], messages: Messages
) -> dict[str, dict[str, list[Any]]]:
    """Run all cases against all targets; returns the results by target and case."""

    async def one(client: Client, channel: Any, call: Call) -> dict[str, Any]:
        outcome = Outcome()
        try:
            await client.perform(channel, call, outcome)
        except Exception as error:  # noqa: BLE001  it is the outcome
            outcome.code, outcome.details = type(error).__name__, str(error)
        if outcome.code != "OK" and call.kind.endswith("unary"):
            outcome.replies.clear()  # grpc.aio's empty message; most clients hide it
        return vars(outcome)

    async def step(client: Client, channel: Any, raw: dict[str, Any]) -> Any:
        call = Call.of(raw, messages)
        if raw.get("fresh"):
            channel = client.open()
            try:
                return await one(client, channel, call)
            finally:
                await client.close(channel)
        if raw.get("again"):
            for _ in range(ATTEMPTS - 1):
                outcome = await one(client, channel, call)
                if outcome["code"] == "OK":
                    return outcome
                await asyncio.sleep(0.05)
        together = [one(client, channel, call) for _ in range(raw.get("together", 1))]
        outcomes = await asyncio.gather(*together)
        differing = [each for each in outcomes if each != outcomes[0]]
        return differing or outcomes[0]

    async def target(client: Client) -> dict[str, list[Any]]:
        channel = client.open()
        try:
            return {
                name: [await step(client, channel, raw) for raw in spec["cases"][name]]
                for name in client.target["cases"]
            }
        finally:
            await client.close(channel)

    clients = {each["name"]: client_class(each) for each in spec["targets"]}
    ended = await asyncio.gather(*(target(client) for client in clients.values()))
    return dict(zip(clients, ended, strict=True))


def main(client_class: type[Client]) -> None:
    """Run as a program: specification on standard input, results on standard output."""
    spec = json.load(sys.stdin)
    outcomes = asyncio.run(run(client_class, spec, Messages(Path(spec["descriptors"]))))
    json.dump(outcomes, sys.stdout)
