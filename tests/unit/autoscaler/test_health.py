"""The autoscaler's HTTP pages: metrics and liveness."""

import asyncio
import socket

import httpx
import pytest

from serving.autoscaler.health import STUCK, Heartbeat, serve_pages
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings
from tests.support.clock import ManualClock
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE


@pytest.fixture
def port():
    return held_port()


def get(port, path):
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE, trust_env=False)


async def test_it_is_alive_while_the_loop_marks(port):
    clock = ManualClock()
    heartbeat = Heartbeat(clock.monotonic)
    stop = serve_pages(AutoscalerSettings(metrics_port=port), heartbeat)
    try:
        assert (await asyncio.to_thread(get, port, "/livez")).status_code == 200
        clock.now += STUCK + 1
        answer = await asyncio.to_thread(get, port, "/livez")
        assert (answer.status_code, answer.text) == (503, "the event loop last ran 31 s ago\n")

        async def once(_):
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await heartbeat.beat(once)
        assert (await asyncio.to_thread(get, port, "/livez")).status_code == 200
        assert "moe_autoscaler_leader" in (await asyncio.to_thread(get, port, "/metrics")).text
    finally:
        await asyncio.to_thread(stop)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        scaling = AutoscalerSettings(metrics_port=taken.getsockname()[1])
        with pytest.raises(SettingsError, match=r"autoscaler\.metrics_port"):
            serve_pages(scaling, Heartbeat())
