"""Faults and scaling of the fleet during a run, from the router's /fleet."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serving.client.aio import AsyncRestClient
from serving.client.errors import ClientError

_INTERVAL = 1.0

EventKind = Literal["fault", "scaling", "ready"]


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """A change of a group, marked in the timeline."""

    at: float
    """Seconds since the run began."""
    kind: EventKind
    label: str


def changes(before: Mapping[str, Any], after: Mapping[str, Any], at: float) -> Iterator[FleetEvent]:
    """Yield the changes between two responses of /fleet; ``at`` is the time of the second one."""
    old = {group["group_id"]: group for group in before["groups"]}
    new = {group["group_id"]: group for group in after["groups"]}
    for name, group in new.items():
        state, reason = group["state"], group.get("reason") or ""
        was = old[name]["state"] if name in old else None
        again = name in old and old[name]["epoch"] != group["epoch"]
        if was is None:
            yield FleetEvent(at, "scaling", f"{name} added ({state})")
        elif again:
            yield FleetEvent(at, "fault", f"{name} restarted ({state})")
        elif was != state:
            kind: EventKind = "ready" if state == "ready" else "fault"
            kind = "scaling" if state == "draining" else kind
            yield FleetEvent(at, kind, f"{name} is {state}" + (f": {reason}" if reason else ""))
    for name in old.keys() - new.keys():
        reason = _last_reason(after, name)
        kind = "scaling" if old[name]["state"] == "draining" else "fault"
        yield FleetEvent(at, kind, f"{name} removed" + (f": {reason}" if reason else ""))


def _last_reason(picture: Mapping[str, Any], name: str) -> str:
    """Return the last reason of a removed group; empty if the history has none."""
    entries = [group for group in picture.get("history") or () if group["group_id"] == name]
    return max(entries, key=lambda group: group["since_unix_seconds"])["reason"] if entries else ""


async def watch(
    router: AsyncRestClient, now: Callable[[], float], note: Callable[[FleetEvent], None]
) -> str:
    """Report changes of the fleet until cancelled or until /fleet cannot be read.

    Args:
        router: Client of the router whose /fleet is read every second.
        now: Returns the seconds since the run began.
        note: Receives each event.

    Returns:
        The reason why /fleet cannot be read.
    """
    last: Mapping[str, Any] | None = None
    while True:
        began = time.monotonic()
        try:
            picture = await router.get_json("/fleet")
        except ClientError as error:
            if error.kind == "rejected":  # another server, or no key for this page
                return str(error)
        else:
            if not isinstance(picture, dict) or "groups" not in picture:
                return "its /fleet is not from a moe-serving router"
            if last is not None:
                for event in changes(last, picture, now()):
                    note(event)
            last = picture
        await asyncio.sleep(max(_INTERVAL - (time.monotonic() - began), 0.0))
