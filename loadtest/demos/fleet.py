"""A fleet without Ray: routers without REST and gRPC in this process, ranks in child processes."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import yaml

from loadtest.demos.tiny_moe import NAME
from serving.settings import Settings

_STOP_TIMEOUT = 20.0


class Router:
    """A router without REST and gRPC."""

    def __init__(self, settings: Settings) -> None:
        from serving.admission.controller import AdmissionController
        from serving.clock import SystemClock
        from serving.dispatch.dispatcher import Dispatcher
        from serving.engine.arguments import router_vllm_config
        from serving.fleet.join_server import LinkServer
        from serving.fleet.membership import FleetMembership
        from serving.fleet.models import FleetModel, FleetModels
        from serving.link.protocol import model_fingerprint
        from serving.requests.client import FleetClient

        self.membership = FleetMembership(settings.fleet)
        dispatcher = Dispatcher(self.membership, settings.routing, SystemClock())
        self.admission = AdmissionController(settings.admission, dispatcher)
        config = router_vllm_config(settings)
        self.client = FleetClient(config, self.membership, self.admission, settings)
        fingerprint = model_fingerprint(settings.model.path)
        self.server = LinkServer(
            FleetModels([FleetModel(settings.model.name, self.membership, fingerprint)]),
            settings.link,
            settings.router,
        )

    async def stop(self) -> None:
        """Disconnect the ranks and stop."""
        await self.server.stop()
        self.client.shutdown()
        await self.admission.stop()


def settings_for(options: argparse.Namespace, model: Path) -> Settings:
    """Return the settings of ranks and routers, except routing."""
    return Settings.model_validate(
        {
            "model": {"path": str(model), "name": NAME},
            # Each rank is a group: without expert parallelism ranks do not wait for each other,
            # and only routing makes a difference.
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
    """Run ``count`` groups of one rank, each a process that joins all addresses."""
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
