"""A candidate for the Lease argv[1] as a process; prints whether it is the leader."""

import asyncio
import sys

from serving.autoscaler.actuators.kubernetes_api import KubernetesApi, cluster_configuration
from serving.autoscaler.actuators.lease import LeaseElection
from serving.clock import SystemClock
from serving.settings import KubernetesSettings


async def main(lease: str, identity: str) -> None:
    settings = KubernetesSettings(lease=lease, lease_seconds=9.0)
    api = KubernetesApi(settings, await cluster_configuration())
    election = LeaseElection(api, settings, identity, SystemClock())
    task = asyncio.create_task(election.run())
    was = None
    while not task.done():
        if election.leading != was:
            was = election.leading
            print("leading" if was else "waiting", flush=True)  # noqa: T201  the test reads it
        await asyncio.sleep(0.02)
    await task


asyncio.run(main(*sys.argv[1:]))
