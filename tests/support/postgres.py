"""A real PostgreSQL server on a free port, which a test can kill and restart."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import pytest

from tests.support.ports import held_port
from tests.support.waiting import PATIENCE, wait_until

PROGRAMS = Path(__file__).resolve().parents[2] / ".tools" / "postgres" / "bin"
MISSING = "no PostgreSQL in .tools/postgres: .ci/tools fetches it and says if it cannot"
_NOBODY = 65534
_STARTS = 10
"""Maximum number of attempts to start the server."""


class PostgresServer:
    """A server with superuser ``moe``. It does not run as root, so root starts it as nobody."""

    def __init__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="moe-pg-"))
        self._as = {}
        if os.geteuid() == 0:
            os.chown(self._folder, _NOBODY, _NOBODY)
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        self.process = None
        self.port = held_port()
        self._run(
            "initdb",
            *("-D", self._folder / "data", "-U", "moe", "-A", "trust"),
            *("--no-sync", "-E", "UTF8", "--locale=C"),
        )

    def url(self, database="postgres"):
        return f"postgresql://moe@127.0.0.1:{self.port}/{database}"

    def start(self):
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",  # a killed server's files are in the page cache
            "max_connections": 20,
            "shared_buffers": "16MB",
        }
        command = [
            PROGRAMS / "postgres",
            *("-D", self._folder / "data"),
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ]
        starts = count(1)

        def answers():
            if self.process is not None and self.process.poll() is not None:
                # A fork of a process with gRPC's threads may crash before it runs the server.
                log, code = (self._folder / "log").read_text(), self.process.returncode
                assert not log, (code, log)
                assert next(starts) < _STARTS, code
                self.process = None
            if self.process is None:
                with (self._folder / "log").open("wb") as log:
                    self.process = subprocess.Popen(
                        command, cwd=self._folder, stdout=log, stderr=log, **self._as
                    )
            return self._answers()

        wait_until(answers, "an answer of PostgreSQL", interval=0.02)

    def create_database(self, name):
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def kill(self):
        """Kill the server's main process; the others end when they notice."""
        if self.process is not None:
            # Stopped first: it could start another process while its children are listed.
            self.process.send_signal(signal.SIGSTOP)
            others = psutil.Process(self.process.pid).children()
            self.process.kill()
            self.process.wait()
            self.process = None
            # The next server refuses to start while one of them uses the shared memory.
            psutil.wait_procs(others, PATIENCE)

    def close(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            self.process.wait()
            self.process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self):
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program, *arguments):
        subprocess.run(
            [PROGRAMS / program, *arguments],
            cwd=self._folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **self._as,
        )


@contextmanager
def postgres_or_skip() -> Iterator[PostgresServer]:
    """Run a server; skip the test if .ci/tools could not fetch one."""
    if not PROGRAMS.exists():
        pytest.skip(MISSING)
    server = PostgresServer()
    server.start()
    try:
        yield server
    finally:
        server.close()
