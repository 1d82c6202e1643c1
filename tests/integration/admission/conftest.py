"""A real Redis server on a free port, which a test can kill and restart."""

import subprocess
import time
from pathlib import Path

import pytest
import redis

from tests.support.ports import held_port

SERVER = Path(__file__).resolve().parents[3] / ".tools" / "redis" / "redis-server"


class RedisServer:
    """One redis-server process without persistence."""

    def __init__(self, folder):
        self._folder = folder
        self.process = None
        self.port = held_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        arguments = {
            "port": self.port,
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": self._folder,
        }
        self.process = subprocess.Popen(
            [
                SERVER,
                *(str(part) for key, value in arguments.items() for part in (f"--{key}", value)),
            ],
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis.from_url(self.url)
        patience = time.monotonic() + 90
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < patience, "redis-server does not answer"
                time.sleep(0.01)
        client.close()

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis_server(tmp_path):
    if not SERVER.exists():
        pytest.skip("no Redis server in .tools/redis: .ci/tools fetches it and says if it cannot")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()
