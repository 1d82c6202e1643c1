"""The router as a process: environment, signals, and the file with its addresses."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import cast

import structlog

from serving import process_tuning
from serving.router.app import Router
from serving.settings import Settings

PORTS_FILE_VARIABLE = "MOE_SERVING_PORTS_FILE"

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # no tensor is computed here
    "VLLM_CONFIGURE_LOGGING": "0",  # telemetry.logs handles its records
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.router")


def serve_router(settings: Settings, ports_file: Path | None = None) -> None:
    """Run a router on uvloop until a signal stops it; see ``run_router``."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_router(settings, ports_file))


async def run_router(settings: Settings, ports_file: Path | None = None) -> None:
    """Run a router (REST, gRPC, and the join port for ranks) until SIGTERM or SIGINT.

    The first signal makes the router unready and gives requests in flight up to
    ``router.drain_timeout`` to finish; a second signal ends the process immediately.

    Args:
        settings: All settings; port 0 means any free port.
        ports_file: File for the bound addresses, written as JSON once all are bound. By default,
            the file named by ``MOE_SERVING_PORTS_FILE``, if set.

    Raises:
        SettingsError: An address cannot be bound, or vLLM rejects its arguments.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # vLLM imports Ray, if installed, only to detect whether it runs inside Ray, which a router
    # never does. Without the import, start-up is a second faster and Ray adds no threads or logs.
    sys.modules.setdefault("ray", cast("ModuleType", None))
    from serving.telemetry.logs import configure_logs

    configure_logs(settings.telemetry, process="router")
    named = os.environ.get(PORTS_FILE_VARIABLE)
    ports_file = ports_file or (Path(named) if named else None)
    stopping = asyncio.Event()
    with _signals(stopping):
        with process_tuning.gc_paused():
            router = await Router.start(settings)
        configure_logs(settings.telemetry, process="router")  # imports changed the configuration
        from vllm import envs

        envs.enable_envs_cache()  # vLLM reads about twenty environment variables for each request
        process_tuning.tune_process()
        gc_task = asyncio.create_task(
            process_tuning.collect_when_idle(lambda: router.gate.inflight == 0)
        )
        try:
            if ports_file is not None:
                _write_atomically(ports_file, json.dumps(asdict(router.addresses)))
            log.info("router is up", **asdict(router.addresses))
            await stopping.wait()
            log.info("router draining", inflight=router.gate.inflight)
            await router.drain(settings.router.drain_timeout)
        finally:
            gc_task.cancel()
            await router.stop()
            log.info("router stopped")


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _write_atomically(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text + "\n", "utf-8")
    temporary.replace(file)
