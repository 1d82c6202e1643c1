"""``moe-serving doctor``: checks whether this machine can run moe-serving, and gives advice."""

import contextlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.doctor import checks, presets
from serving.cli.doctor.checks import Check, Verdict
from serving.cli.doctor.machine import DISK_BYTES, cores, listen_problem, memory_available
from serving.cli.local.ports import listeners
from serving.cli.local.state import StateFile, state_folder
from serving.cli.options import (
    ConfigOption,
    GroupsOption,
    GrpcPortOption,
    JoinPortOption,
    ModelsOption,
    PortOption,
    RanksOption,
    SetOption,
    settings_from,
)
from serving.engine import memlock, rdma
from serving.engine.cpu_plugin.node_exchange.support import why_not_here
from serving.engine.start_checks import fabric_environment
from serving.errors import ServingError
from serving.settings import Platform, Settings, served_models

_COLORS = {Verdict.OK: "\x1b[32m", Verdict.WARN: "\x1b[33m", Verdict.FAIL: "\x1b[31m"}
_LOCKS = Path(__file__).resolve().parents[3] / "requirements"


def doctor_command(
    config: ConfigOption = None,
    sets: SetOption = None,
    groups: GroupsOption = None,
    ranks: RanksOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    join_port: JoinPortOption = None,
    model: ModelsOption = None,
    *,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Skip the check of the CPU plugin, which takes a few seconds."),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Check instead whether a preset of the Helm chart fits into its GPUs' memory.",
        ),
    ] = None,
) -> int:
    """Check memory, cores, ports, packages, the model and the CPU plugin.

    Takes the flags of moe-serving up and checks whether moe-serving up with these flags can start.
    Each line shows ok, warn or fail, and a recommended action.

    Exit code 1 if a check failed, otherwise 0.
    """
    if preset is not None:
        folder = presets.presets_folder()
        return report(
            check
            for size in presets.preset_sizes(preset, folder)
            for check in presets.size_checks(size)
        )
    settings = settings_from(
        config,
        sets,
        groups=groups,
        ranks=ranks,
        port=port,
        grpc_port=grpc_port,
        join_port=join_port,
        models=model,
    )
    return report(examine(settings, fast=fast))


def report(found: Iterable[Check]) -> int:
    """Print each check when it is done; return the exit code."""
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    worst = Verdict.OK
    for check in found:
        print(line_of(check, color=color), flush=True)
        if check.verdict is Verdict.FAIL or worst is Verdict.OK:
            worst = check.verdict
    return exit_code(worst)


def exit_code(worst: Verdict) -> int:
    """Return the exit code of the worst verdict; warnings do not count as failures."""
    return 1 if worst is Verdict.FAIL else 0


def line_of(check: Check, *, color: bool) -> str:
    """Return a check as the lines to print."""
    start, end = (_COLORS[check.verdict], "\x1b[0m") if color else ("", "")
    text = f"{start}{check.verdict:<5}{end} {check.name:<13} {check.seen}"
    return f"{text}\n{'':<20}-> {check.advice}" if check.advice else text


def examine(settings: Settings, *, fast: bool) -> Iterator[Check]:
    """Yield the results of all checks, quick ones first."""
    models = served_models(settings)
    pools = [(model, pool) for model in models for pool in model.pools]
    ranks = sum(pool.settings.group.count * _workers(pool.settings) for _, pool in pools)
    yield checks.check_python(sys.version_info[:2], platform.system(), platform.machine())
    yield checks.check_cores(cores(), ranks)
    real = any(pool.settings.engine.kind == "vllm" for _, pool in pools)
    if real and settings.platform is Platform.CPU:
        yield checks.check_memory(memory_available(), ranks)
    folder = tempfile.gettempdir()
    yield checks.check_disk(shutil.disk_usage(folder).free, folder, DISK_BYTES)
    installed = _installed()
    if _LOCKS.is_dir():
        yield checks.check_packages(locked_versions(), installed)
    yield checks.check_torch(installed, settings.platform.value)
    for model, pool in pools:
        check = _model(pool.settings, _workers(pool.settings))
        named = f"{model.name}/{pool.name}: {check.seen}"
        yield check if len(pools) == 1 else replace(check, seen=named)
    engines = [pool.settings for _, pool in pools if pool.settings.engine.kind == "vllm"]
    if engines:
        yield _fabric(engines[0])
        together = [pool for pool in engines if _workers(pool) > 1]
        for exchange in dict.fromkeys(pool.engine.exchange for pool in together):
            if settings.platform is Platform.CPU:
                yield checks.check_exchange(exchange, why_not_here())
    state = StateFile(state_folder())
    held = state.held()
    yield _leftovers(state, held=held)
    if not held:
        for item in listeners(settings):
            yield checks.check_port(item.what, item.port, listen_problem(item.host, item.port))
    if not fast and settings.platform is Platform.CPU:
        found = metadata.entry_points(group="vllm.general_plugins")
        yield checks.check_plugin([item.value for item in found], _patches())


def _workers(settings: Settings) -> int:
    return settings.group.data_parallel * settings.group.tensor_parallel


def _installed() -> dict[str, str]:
    return {
        checks.normalized(item.metadata["Name"]): item.version for item in metadata.distributions()
    }


def locked_versions() -> dict[str, str]:
    """Return the versions of the lock files, by normalized package name."""
    found: dict[str, str] = {}
    for name in ("torch.lock", "cpu.lock"):
        found |= checks.read_lock((_LOCKS / name).read_text("utf-8"))
    return found


def _model(settings: Settings, workers: int) -> Check:
    folder = Path(settings.model.path)
    if not folder.is_dir():
        return Check(
            Verdict.FAIL, "model", f"{folder} does not exist", "choose a directory: --model FOLDER"
        )
    config = None
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_text("utf-8"))
    return checks.check_model(str(folder), [f.name for f in folder.iterdir()], config, workers)


def _fabric(settings: Settings) -> Check:
    problem = None
    try:
        fabric_environment(settings)
    except ServingError as error:
        problem = str(error)
    limit = memlock.problem(memlock.limit(), free=memlock.locks_freely())
    return checks.check_fabric([str(port) for port in rdma.usable()], problem, limit)


def _leftovers(state: StateFile, *, held: bool) -> Check:
    try:
        last = state.read()
    except ServingError as error:
        return checks.check_leftovers(running=None, stale=str(error))
    if held:
        where = "starting" if last is None else f"{last.rest_url} (process {last.up.pid})"
        return checks.check_leftovers(running=where, stale=None)
    stale = None if last is None else f"the run at {last.rest_url} ended without cleaning up"
    return checks.check_leftovers(running=None, stale=stale)


def _patches() -> dict[str, bool] | str:
    """Load the plugin as vLLM does; return whether each patch is needed, or the error."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.disable(logging.WARNING)  # torch warns about packages that CPUs do not need
    try:
        from serving.engine.cpu_plugin import collectives, experts, register, rotary

        patches = (collectives.PATCH, experts.PATCH, rotary.PATCH)
        needed = {patch.name: not patch.is_right() for patch in patches}
        register()
    except Exception as error:  # noqa: BLE001  any failure is a result of the check
        return f"{type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)
    return needed
