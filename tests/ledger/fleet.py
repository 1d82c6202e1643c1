"""Starts routers, each with fake ranks, in forks of a process that has imported vLLM.

    python -m tests.ledger.fleet

Each line of standard input is a JSON object with the settings of one router, and in ``ranks`` the
number of its groups of one fake rank, which run in its process. The process prints a line with its
addresses when it is ready, and serves until SIGTERM or until it is killed.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from dataclasses import asdict

READY = "READY "


async def serve(groups):
    from serving.telemetry.logs import configure_logs
    from tests.integration.edge.stand import stand_settings, standing

    ranks = groups.pop("ranks")
    settings = stand_settings(**groups)
    configure_logs(settings.telemetry, process="router")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with standing(settings, ranks) as stand:
        configure_logs(settings.telemetry, process="router")
        print(READY + json.dumps(asdict(stand.router.addresses)), flush=True)
        await stopped.wait()


def main():
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.modules.setdefault("ray", None)

    import uvloop

    import serving.edge.rest.app  # noqa: F401  a router imports it, and vLLM, when it starts
    import tests.integration.edge.stand  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps children that end
    gc.freeze()
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve(json.loads(line)))
            os._exit(0)


if __name__ == "__main__":
    main()
