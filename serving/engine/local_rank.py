"""One rank without Ray, in the foreground: for tests and for looking at a single rank.

    python -m serving.engine.local_rank --rank 0 --group g0 --config settings.yaml

Ranks of one group need the same ``--epoch``, ``--address`` and ``--rpc-port``. SIGTERM and
Ctrl-C drain and stop it.
"""

import argparse
import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from serving.clock import SystemClock
from serving.engine.metrics_page import open_page
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.engine.start_checks import fabric_environment
from serving.errors import ServingError
from serving.flag_parser import FlagParser
from serving.flag_values import COUNT, MOST_PORT, ORDINAL, ReadableFile, Whole
from serving.settings import Settings, load_settings

if TYPE_CHECKING:
    from serving.engine.base import Engine

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_DRAIN_TIMEOUT = 5.0


async def run_rank(
    settings: Settings, identity: RankIdentity, *, address: str, rpc_port: int
) -> None:
    """Run the rank until SIGTERM or SIGINT.

    Raises:
        ServingError: the engine did not start.
    """
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    engine = _engine(settings, identity, address, rpc_port)
    try:
        await engine.start()
        # Its thread ends with the process.
        if (page := open_page(settings.telemetry, address)) is not None:
            identity = replace(identity, metrics_address=page.address)
        server = RankServer(engine, settings.link, identity, clock=SystemClock())
        await server.start()
        log.info("rank runs", rank=identity.rank, group=identity.group_id, pid=os.getpid())
        await asked_to_stop.wait()
        await server.drain("the rank was asked to stop", _DRAIN_TIMEOUT)
        await server.stop()
    finally:
        await engine.shutdown()


def _engine(settings: Settings, identity: RankIdentity, address: str, rpc_port: int) -> "Engine":
    if settings.engine.kind == "fake":
        from serving.engine.fake.engine import FakeEngine

        return FakeEngine(settings, rank=identity.rank)
    from serving.engine.environment import engine_environment

    # Before vLLM is imported: it reads its environment then.
    os.environ.update(engine_environment(settings) | fabric_environment(settings))
    from serving.engine.vllm_engine import VllmEngine

    return VllmEngine(settings, rank=identity.rank, address=address, rpc_port=rpc_port)


def main() -> None:
    """Read the command line and run."""
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rank", type=ORDINAL, default=0, help="index of the rank (default 0)")
    parser.add_argument("--group", default="g0", help="group id (default g0)")
    parser.add_argument("--epoch", default="local", help="the same on all ranks (default local)")
    parser.add_argument("--world-size", type=COUNT, help="ranks (default group.data_parallel)")
    parser.add_argument("--address", default="127.0.0.1", help="address of rank 0")
    parser.add_argument(
        "--rpc-port",
        type=Whole("a port", at_least=0, at_most=MOST_PORT),
        default=0,
        help="vLLM's port on rank 0",
    )
    parser.add_argument("--config", type=ReadableFile(), help="settings file (YAML)")
    options = parser.parse_args()
    try:
        settings = load_settings(options.config)
        identity = RankIdentity(
            options.group,
            options.epoch,
            options.rank,
            options.world_size or settings.group.data_parallel,
            options.address,
        )
        asyncio.run(
            run_rank(settings, identity, address=options.address, rpc_port=options.rpc_port)
        )
    except ServingError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
