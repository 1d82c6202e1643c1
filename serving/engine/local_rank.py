"""Runs one rank without Ray in the foreground, for tests and for examining a single rank.

    python -m serving.engine.local_rank --rank 0 --group g0 --config settings.yaml

Ranks of one group need the same ``--epoch``, ``--address`` and ``--rpc-port``. SIGTERM and
Ctrl-C drain and stop the rank.
"""

import argparse
import asyncio
import os
import signal

import structlog

from serving.clock import SystemClock
from serving.engine.environment import engine_environment
from serving.engine.rank import DataParallelAddress, Rank, tune_rank_process
from serving.engine.router_link.server import RankIdentity
from serving.engine.start_checks import fabric_environment
from serving.errors import ServingError
from serving.flags.parser import FlagParser
from serving.flags.paths import ReadableFile
from serving.flags.values import COUNT, MAX_PORT, ORDINAL, WholeNumber
from serving.settings import Settings, load_settings, pool_settings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def run_rank(
    settings: Settings, identity: RankIdentity, meeting: DataParallelAddress
) -> None:
    """Run the rank until SIGTERM or SIGINT.

    Raises:
        ServingError: The rank did not start.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if settings.engine.kind == "vllm":
        # Set before the import of vLLM, which reads them at import time.
        os.environ.update(engine_environment(settings) | fabric_environment(settings))
    rank = Rank(settings, identity, meeting, SystemClock())
    try:
        await rank.load()
        await rank.join()
        tune_rank_process(settings.engine.kind)
        log.info("rank started", rank=identity.rank, group=identity.group_id, pid=os.getpid())
        await stopping.wait()
    finally:
        await rank.stop("the rank is shutting down")


def main() -> None:
    """Read the command line and run the rank."""
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rank", type=ORDINAL, default=0, help="index of the rank (default 0)")
    parser.add_argument("--group", default="g0", help="group id (default g0)")
    parser.add_argument(
        "--epoch", default="local", help="epoch of the group, the same on all ranks (default local)"
    )
    parser.add_argument(
        "--world-size", type=COUNT, help="ranks in the group (default group.data_parallel)"
    )
    parser.add_argument("--address", default="127.0.0.1", help="address of rank 0")
    parser.add_argument(
        "--rpc-port",
        type=WholeNumber("a port", at_least=0, at_most=MAX_PORT),
        default=0,
        help="vLLM's data-parallel RPC port on rank 0 (default 0)",
    )
    parser.add_argument("--pool", help="MODEL[/POOL] of models[] (default: the only pool)")
    parser.add_argument("--config", type=ReadableFile(), help="settings file (YAML)")
    options = parser.parse_args()
    try:
        settings = pool_settings(load_settings(options.config), options.pool)
        identity = RankIdentity(
            options.group,
            options.epoch,
            options.rank,
            options.world_size or settings.group.data_parallel,
            options.address,
        )
        meeting = DataParallelAddress(options.address, options.rpc_port)
        asyncio.run(run_rank(settings, identity, meeting))
    except ServingError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
