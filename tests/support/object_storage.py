"""A real S3-compatible server that keeps its buckets in a folder, and that a test may kill."""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ports import held_port
from tests.support.waiting import wait_until

PROGRAM = Path(__file__).resolve().parents[2] / ".tools" / "localbucket" / "localbucket.py"
MISSING = "no LocalBucket in .tools/localbucket: .ci/tools fetches it and says if it cannot"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",  # the server does not check them
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Environment of the server's clients."""


class ObjectStorageServer:
    """One server; its objects survive ``kill``."""

    def __init__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="moe-s3-"))
        self.port = held_port()
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM, self._folder / "data", "--port", str(self.port)],
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        wait_until(self._answers, "an answer of the object storage", interval=0.02)

    def create_bucket(self, name):
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        return f"s3://{name}/batches"

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self):
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self):
        assert self.process.poll() is None, (self._folder / "log").read_text()
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


@contextmanager
def object_storage_or_skip() -> Iterator[ObjectStorageServer]:
    """Run a server; skip the test if .ci/tools could not fetch it."""
    if not PROGRAM.exists():
        pytest.skip(MISSING)
    server = ObjectStorageServer()
    server.start()
    try:
        yield server
    finally:
        server.close()
