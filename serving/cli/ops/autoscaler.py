"""``moe-serving autoscaler``: run it, ask it why, or replay what it saw."""

import asyncio
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.explain import HEADER, explain, notice_lines, row
from serving.autoscaler.policy import decide
from serving.autoscaler.recording import read_recording
from serving.cli.local.state import NotRunning, StateFile, state_folder
from serving.cli.options import ConfigOption, RanksOption, SetOption, settings_from
from serving.client.credentials import local_access
from serving.errors import NotReady, SettingsError
from serving.settings import Settings
from serving.telemetry.logs import configure_logs

if TYPE_CHECKING:
    from serving.autoscaler.loop import Turn


class What(StrEnum):
    """What to do."""

    RUN = "run"
    EXPLAIN = "explain"


def autoscaler_command(
    what: Annotated[What, typer.Argument(help="run, or explain one decision.")] = What.RUN,
    config: ConfigOption = None,
    sets: SetOption = None,
    ranks: RanksOption = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide and tell, but change nothing.")
    ] = False,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="Take the addresses, the key and Ray's token from the run of this machine "
            "(moe-serving up with ray.dashboard=true).",
        ),
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="FILE",
            help="Decide again on a recording (autoscaler.record_file) with these settings.",
        ),
    ] = None,
) -> None:
    """Keep the number of groups to the load, from Prometheus and the routers.

    explain prints the signals, each rule's vote and the outcome, and changes nothing. Ctrl-C
    ends it; the groups stay as they are.
    """
    settings = settings_from(config, sets, ranks=ranks)
    if replay is not None:
        replay_recording(settings, replay, detail=what is What.EXPLAIN)
        return
    if local:
        settings = with_local_run(settings)
    configure_logs(settings.telemetry, process="autoscaler")
    if what is What.EXPLAIN:
        asyncio.run(explain_once(settings))
    else:
        asyncio.run(run_until_stopped(settings, dry_run=dry_run))


def replay_recording(settings: Settings, file: Path, *, detail: bool) -> None:
    """Print what the policy makes of a recording; ``detail``: with all votes.

    The recorded number of groups is taken as it was: what other decisions would have led to is
    for the simulation.
    """
    from serving.autoscaler.app import check, gpus_of_group

    check(settings.autoscaler)
    gpus = gpus_of_group(settings)
    state = PolicyState()
    if not detail:
        print(HEADER)
    for at, seen in read_recording(file):
        decision, state = decide(seen, state, at, settings.autoscaler, gpus)
        print(f"{explain(decision, seen)}\n" if detail else row(decision, seen))


async def explain_once(settings: Settings) -> None:
    """Print one decision and change nothing.

    Raises:
        NotReady: nobody can say how many groups are asked for.
    """
    from serving.autoscaler.app import assembled

    async with assembled(settings, dry_run=True) as parts:
        turn = await parts.autoscaler.turn()
        notices = parts.autoscaler.notices()
    if turn is None:
        print("\n".join(notice_lines(notices)))
        raise NotReady("nobody can say how many groups are asked for; the log above says why")
    print(explain(turn.decision, turn.seen, turn.problem, notices))


async def run_until_stopped(settings: Settings, *, dry_run: bool) -> None:
    """Run until SIGINT or SIGTERM; print a row for each decision when stdout is a terminal."""
    from serving.autoscaler.app import assembled
    from serving.autoscaler.health import Heartbeat, serve_pages

    def show(turn: "Turn") -> None:
        print(row(turn.decision, turn.seen), flush=True)

    shown = show if sys.stdout.isatty() or dry_run else None
    heartbeat = Heartbeat()
    stop_pages = serve_pages(settings.autoscaler, heartbeat)
    beating = asyncio.create_task(heartbeat.beat())
    try:
        async with assembled(settings, dry_run=dry_run) as parts:
            if shown is not None:
                print(HEADER, flush=True)
            task = asyncio.create_task(parts.autoscaler.run(parts.leading, show=shown))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, task.cancel)
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
    finally:
        beating.cancel()
        await asyncio.wait([beating])
        await asyncio.to_thread(stop_pages)


def with_local_run(settings: Settings) -> Settings:
    """Return settings that point at what ``up`` started on this machine.

    Raises:
        NotRunning: nothing runs, or without Ray's dashboard.
        SettingsError: Ray's token cannot be written down.
    """
    folder = state_folder()
    state = StateFile(folder).read()
    if state is None or not state.ray_address:
        raise NotRunning("nothing is running here: moe-serving up --set ray.dashboard=true")
    if not state.dashboard_url:
        raise NotRunning(
            "the run of this machine has no Ray dashboard: start it with --set ray.dashboard=true"
        )
    access = local_access(folder)
    if access.pinned:
        raise SettingsError("--local cannot check this run's own certificate: set autoscaler.*")
    changes: dict[str, object] = {
        "routers": (state.rest_url,),
        "drain_addresses": (state.grpc_address,),
        "dashboard_url": state.dashboard_url,
        "dashboard_token_file": str(_written(folder / "ray-token", state.ray_token)),
    }
    if access.api_key is not None:
        changes["api_key_file"] = str(_written(folder / "autoscaler-key", access.api_key))
    return settings.model_copy(
        update={
            "autoscaler": settings.autoscaler.model_copy(update=changes),
            "group": settings.group.model_copy(update={"data_parallel": state.ranks}),
        }
    )


def _written(file: Path, secret: str) -> Path:
    """Write a secret that only the owner may read."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(secret)
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from error
    return file
