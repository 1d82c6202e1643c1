"""``moe-serving autoscaler``: runs the autoscaler, explains a decision, or replays a recording."""

import asyncio
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.autoscaler.decision import HEADER, PolicyState, explain, notice_lines, row
from serving.autoscaler.policy import decide
from serving.autoscaler.recording import read_recording
from serving.cli.local.state import NotRunning, StateFile, state_folder
from serving.cli.ops.autoscaler_pools import explain_pools, header, replay_pools, rows
from serving.cli.options import ConfigOption, RanksOption, SetOption, settings_from
from serving.client.credentials import local_access
from serving.errors import NotReady, SettingsError
from serving.settings import Settings
from serving.telemetry.logs import configure_logs

if TYPE_CHECKING:
    from serving.autoscaler.loop import Cycle
    from serving.autoscaler.pool_loop import PoolsCycle


class What(StrEnum):
    """Subcommands."""

    RUN = "run"
    EXPLAIN = "explain"


def autoscaler_command(
    what: Annotated[
        What, typer.Argument(help="Run the autoscaler, or explain one decision.")
    ] = What.RUN,
    config: ConfigOption = None,
    sets: SetOption = None,
    ranks: RanksOption = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print decisions without scaling.")
    ] = False,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="Use the addresses, the API key and the Ray token of the local run "
            "(moe-serving up --set ray.dashboard=true).",
        ),
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="FILE",
            help="Apply the policy with these settings to a recording (autoscaler.record_file).",
        ),
    ] = None,
) -> None:
    """Scale the number of groups with the load, using signals from Prometheus and the routers.

    "explain" prints the signals, the vote of each rule and the outcome, and changes nothing.
    Ctrl-C stops the autoscaler and leaves the groups unchanged.
    """
    settings = settings_from(config, sets, ranks=ranks)
    if replay is not None:
        replays = replay_pools if settings.models else replay_recording
        replays(settings, replay, detail=what is What.EXPLAIN)
        return
    if local:
        settings = with_local_run(settings)
    configure_logs(settings.telemetry, process="autoscaler")
    if what is What.EXPLAIN:
        asyncio.run(explain_pools(settings) if settings.models else explain_once(settings))
    else:
        asyncio.run(run_until_stopped(settings, dry_run=dry_run))


def replay_recording(settings: Settings, file: Path, *, detail: bool) -> None:
    """Print the policy's decisions for a recording; ``detail`` adds all votes.

    Each decision starts from the recorded number of groups. To see the consequences of other
    decisions, use the simulation.
    """
    from serving.autoscaler.app import check_schedule, gpus_of_group

    check_schedule(settings.autoscaler)
    gpus = gpus_of_group(settings)
    state = PolicyState()
    if not detail:
        print(HEADER)
    for at, observation in read_recording(file):
        if observation.pool:
            raise SettingsError(
                f"{file} was recorded for pool {observation.pool} of models[], but these settings "
                "have no models: use the settings of the recorded autoscaler"
            )
        decision, state = decide(observation, state, at, settings.autoscaler, gpus)
        print(f"{explain(decision, observation)}\n" if detail else row(decision, observation))


async def explain_once(settings: Settings) -> None:
    """Print one decision and change nothing.

    Raises:
        NotReady: The number of requested groups cannot be determined.
    """
    from serving.autoscaler.app import autoscaler_app

    async with autoscaler_app(settings, dry_run=True) as app:
        cycle = await app.autoscaler.run_once()
        notices = app.autoscaler.notices()
    if cycle is None:
        print("\n".join(notice_lines(notices)))
        raise NotReady("the requested number of groups cannot be determined; see the log above")
    print(explain(cycle.decision, cycle.observation, cycle.problem, notices))


async def run_until_stopped(settings: Settings, *, dry_run: bool) -> None:
    """Run until SIGINT or SIGTERM; print each decision on a terminal and in a dry run."""
    from serving.autoscaler.health import Heartbeat, serve_pages

    shown = sys.stdout.isatty() or dry_run
    heartbeat = Heartbeat()
    stop_pages = serve_pages(settings.autoscaler, heartbeat)
    beating = asyncio.create_task(heartbeat.beat())
    try:
        run = _run_pools if settings.models else _run_one
        task = asyncio.create_task(run(settings, dry_run=dry_run, shown=shown))
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


async def _run_one(settings: Settings, *, dry_run: bool, shown: bool) -> None:
    from serving.autoscaler.app import autoscaler_app
    from serving.autoscaler.reports import decision_reports

    async with (
        autoscaler_app(settings, dry_run=dry_run) as app,
        decision_reports(settings.autoscaler) as reports,
    ):

        def on_cycle(cycle: "Cycle") -> None:
            reports.send(cycle.decision, cycle.observation, dry_run=dry_run)
            if shown:
                print(row(cycle.decision, cycle.observation), flush=True)

        if shown:
            print(HEADER, flush=True)
        await app.autoscaler.run(app.is_leader, on_cycle=on_cycle)


async def _run_pools(settings: Settings, *, dry_run: bool, shown: bool) -> None:
    from serving.autoscaler.pool_app import pools_app, scaled_pools
    from serving.autoscaler.reports import decision_reports

    keys = [pool.key for pool in scaled_pools(settings)]
    async with (
        pools_app(settings, dry_run=dry_run) as app,
        decision_reports(settings.autoscaler) as reports,
    ):

        def on_cycle(cycle: "PoolsCycle") -> None:
            for key, decision in cycle.decisions.items():
                reports.send(decision, cycle.observations[key], pool=key, dry_run=dry_run)
            if shown:
                print(rows(keys, cycle.decisions, cycle.observations), flush=True)

        if shown:
            print(header(keys), flush=True)
        await app.autoscaler.run(app.is_leader, on_cycle=on_cycle)


def with_local_run(settings: Settings) -> Settings:
    """Return settings for the local run: its addresses, API key, Ray dashboard and Ray token.

    Raises:
        NotRunning: There is no local run, or it has no Ray dashboard.
        SettingsError: Ray's token cannot be written to a file.
    """
    folder = state_folder()
    state = StateFile(folder).read()
    if state is None or not state.ray_address:
        raise NotRunning(
            "nothing is running on this machine: start it with moe-serving up --set "
            "ray.dashboard=true"
        )
    if not state.dashboard_url:
        raise NotRunning(
            "the local run has no Ray dashboard: start it with --set ray.dashboard=true"
        )
    access = local_access(folder)
    if access.pinned:
        raise SettingsError(
            "--local cannot verify the certificate of the local run: set autoscaler.* instead"
        )
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
    """Write a secret to a file that only its owner can read."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(secret)
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from error
    return file
