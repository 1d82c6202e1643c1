"""Recorded requests, and injected faults."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiohttp import web

from tests.kube import protobuf
from tests.kube.errors import REASONS, ApiError, bad_request


@dataclass(frozen=True)
class Seen:
    """A recorded request."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    body: bytes
    agent: str

    @property
    def watch(self) -> bool:
        return self.query.get("watch") in {"true", "1"}

    def parsed(self) -> Any:
        """Return the parsed body; None if there is no body.

        Raises:
            ApiError: 400 if it is neither JSON nor, where that is taken, YAML; 415.
        """
        if not self.body:
            return None
        if self.content_type.endswith("yaml"):
            return yaml.load(self.body, yaml.CSafeLoader)
        if self.content_type == protobuf.CONTENT_TYPE:
            return protobuf.parsed(self.body)
        if self.method in {"POST", "PUT"} and self.content_type != "application/json":
            message = (
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json, application/yaml, application/vnd.kubernetes.protobuf"
            )
            raise ApiError(415, message)
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise bad_request(f"error decoding patch: {error}") from error


@dataclass
class Fault:
    """A response in place of the real one."""

    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    lines: list[bytes] | None = None
    """Lines of the body of a response with status 200, which then ends."""
    hang: bool = False
    """Send the headers of a response with status 200, then nothing while the connection lasts."""
    cut: bool = False
    """Close the connection without a response."""
    times: int | None = None
    """Number of requests that it applies to; None: all."""
    method: str = ""
    path: str = ""
    watch: bool | None = None
    seen: int = 0
    """Number of requests that it was applied to."""

    def fits(self, seen: Seen) -> bool:
        return (
            (self.times is None or self.seen < self.times)
            and self.method in {"", seen.method}
            and (self.watch is None or self.watch == seen.watch)
            and re.search(self.path, seen.path) is not None
        )

    async def answer(self, request: web.BaseRequest, stop: Any) -> web.StreamResponse | None:
        """Return the response of this fault."""
        if self.cut:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.status is not None:
            reason = REASONS.get(self.status, "")
            error = ApiError(self.status, self.message or reason, reason)
            return web.json_response(error.status(), status=self.status, headers=self.headers)
        answer = web.StreamResponse()
        answer.content_type = "application/json"
        await answer.prepare(request)
        for line in self.lines or ():
            await answer.write(line)
        while self.hang and not stop.is_set():
            transport = request.transport
            if transport is None or transport.is_closing():
                break
            await asyncio.sleep(0.02)  # a transport has no event for its end
        return answer


class Faults:
    """The active faults; the first match applies."""

    def __init__(self):
        self._on: list[Fault] = []

    def add(self, path: str = "", **what: Any) -> Fault:
        """Activate a fault for paths that match the regular expression ``path``; return the fault.

        ``method="GET"``, ``watch=True`` and ``times=3`` narrow it down; ``status=500``,
        ``lines=[...]``, ``hang=True`` or ``cut=True`` select the effect: see :class:`Fault`.
        """
        fault = Fault(path=path, **what)
        self._on.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        self._on.remove(fault)

    def clear(self) -> None:
        self._on.clear()

    def of(self, seen: Seen) -> Fault | None:
        found = next((fault for fault in self._on if fault.fits(seen)), None)
        if found is not None:
            found.seen += 1
        return found
