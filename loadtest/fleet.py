"""Routers without edges in this process, ranks in processes of their own; no Ray."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import yaml

from loadtest.tiny_moe import NAME
from serving.settings import Settings

_STOP_TIMEOUT = 20.0


class Router:
    """A router without its edges."""

    def __init__(self, settings: Settings) -> None:
        from serving.engine.arguments import router_vllm_config
        from serving.fleet.join_server import LinkServer
        from serving.fleet.membership import Roster
        from serving.link.protocol import model_fingerprint
        from serving.requests.client import FleetClient

        self.roster = Roster(settings.fleet)
        self.client = FleetClient(router_vllm_config(settings), self.roster, settings)
        self.server = LinkServer(
            self.roster,
            settings.link,
            settings.router,
            model_name=settings.model.name,
            fingerprint=model_fingerprint(settings.model.path),
        )

    async def stop(self) -> None:
        """Let go of the ranks."""
        await self.server.stop()
        self.client.shutdown()


def settings_for(options: argparse.Namespace, model: Path) -> Settings:
    """Return the settings of ranks and routers, routing apart."""
    return Settings.model_validate(
        {
            "model": {"path": str(model), "name": NAME},
            # Each rank is a group: without expert parallelism they do not wait for each other,
            # and what is seen is routing alone.
            "group": {"data_parallel": 1},
            "engine": {
                "kv_cache_gib": options.kv_cache_gib,
                "max_num_seqs": 16,
                "max_model_len": options.context,
            },
            "router": {"join_port": 0, "reasoning_parser": None, "tool_parser": None},
        }
    )


@contextlib.asynccontextmanager
async def ranks(
    settings: Settings, count: int, addresses: Sequence[str], folder: Path
) -> AsyncIterator[None]:
    """Run ``count`` groups of one rank, each a process, joined to all addresses."""
    link = settings.link.model_copy(update={"routers": tuple(addresses)})
    file = folder / "ranks.yaml"
    file.write_text(yaml.safe_dump(_dumped(settings.model_copy(update={"link": link}))), "utf-8")
    module = [sys.executable, "-m", "serving.engine.local_rank", "--config", str(file)]
    processes = []
    try:
        for number in range(count):
            log = (folder / f"rank-{number}.log").open("wb")
            processes.append(
                await asyncio.create_subprocess_exec(
                    *module, "--group", f"g{number}", stdout=log, stderr=log
                )
            )
            log.close()
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
            except TimeoutError:
                process.kill()


def _dumped(settings: Settings) -> dict[str, object]:
    return settings.model_dump(mode="json", exclude_unset=True)
