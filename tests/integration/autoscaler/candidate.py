"""A process that runs for the lease at argv[1] as argv[2]; prints each change of who leads."""

import asyncio
import sys

from kubernetes.aio import client

from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.lease import LeaseElection
from serving.clock import SystemClock
from serving.settings import KubernetesSettings


async def main(url: str, identity: str) -> None:
    settings = KubernetesSettings(lease_seconds=1.5, api_timeout=1.0)
    api = KubernetesApi(settings, client.Configuration(host=url))
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
