"""What happens to the fleet during a run, from the router's /fleet: faults and scaling."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loadtest.rest_target import RestTarget
from loadtest.target import TargetError

_INTERVAL = 1.0

EventKind = Literal["fault", "scaling", "ready"]


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """Something to mark on the timeline."""

    at: float
    """Seconds since the run began."""
    kind: EventKind
    label: str


def changes(before: Mapping[str, Any], after: Mapping[str, Any], at: float) -> Iterator[FleetEvent]:
    """Yield what happened between two pictures of /fleet, the second taken ``at``."""
    old = {group["group_id"]: group for group in before["groups"]}
    new = {group["group_id"]: group for group in after["groups"]}
    for name, group in new.items():
        state, reason = group["state"], group.get("reason") or ""
        was = old[name]["state"] if name in old else None
        again = name in old and old[name]["epoch"] != group["epoch"]
        if was is None:
            yield FleetEvent(at, "scaling", f"{name} appears ({state})")
        elif again:
            yield FleetEvent(at, "fault", f"{name} starts anew ({state})")
        elif was != state:
            kind: EventKind = "ready" if state == "ready" else "fault"
            kind = "scaling" if state == "draining" else kind
            yield FleetEvent(at, kind, f"{name} is {state}" + (f": {reason}" if reason else ""))
    for name in old.keys() - new.keys():
        reason = _epitaph(after, name)
        kind = "scaling" if old[name]["state"] == "draining" else "fault"
        yield FleetEvent(at, kind, f"{name} is gone" + (f": {reason}" if reason else ""))


def _epitaph(picture: Mapping[str, Any], name: str) -> str:
    """Return why a group is gone: the reason of its last life."""
    lives = [group for group in picture.get("history") or () if group["group_id"] == name]
    return max(lives, key=lambda group: group["since_unix_seconds"])["reason"] if lives else ""


async def watch(
    router: RestTarget, now: Callable[[], float], note: Callable[[FleetEvent], None]
) -> str:
    """Note what happens to the fleet until cancelled, or until there is no /fleet to look at.

    Args:
        router: is asked every second.
        now: seconds since the run began.
        note: gets each event.

    Returns:
        Why it looks no more.
    """
    last: Mapping[str, Any] | None = None
    while True:
        began = time.monotonic()
        try:
            picture = await router.get_json("/fleet")
        except TargetError as error:
            if error.kind == "rejected":  # another server, or no key for this page
                return str(error)
        else:
            if not isinstance(picture, dict) or "groups" not in picture:
                return "its /fleet is another one's"
            if last is not None:
                for event in changes(last, picture, now()):
                    note(event)
            last = picture
        await asyncio.sleep(max(_INTERVAL - (time.monotonic() - began), 0.0))
