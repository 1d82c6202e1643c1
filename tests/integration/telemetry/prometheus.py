"""A real Prometheus on loopback, as installed by .ci/tools."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.support.ports import held_port
from tests.support.waiting import PATIENCE

FOLDER = Path(__file__).resolve().parents[3] / ".tools" / "prometheus"


class Prometheus:
    """A process with an empty store; ends with ``stop``."""

    def __init__(self, folder, scrapes):
        """Start it with these scrape_configs (JSON is YAML); skips without the program."""
        program = FOLDER / "prometheus"
        if not program.is_file():
            pytest.skip("no Prometheus: run .ci/tools")
        port = held_port()
        self.url = f"http://127.0.0.1:{port}"
        config = folder / "prometheus.yml"
        settings = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
            "scrape_configs": scrapes,
        }
        config.write_text(json.dumps(settings), "utf-8")
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def query(self, expression, at=None):
        """Evaluate; returns [(labels, value)]. Raises HTTPError if the query does not parse."""
        parameters = {"query": expression} | ({} if at is None else {"time": at})
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            result = json.load(response)["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def until(self, expression):
        """Wait until the query has a result."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if found := self.query(expression):
                    return found
            except OSError:
                assert self._process.poll() is None, Path(self._log.name).read_text()[-2000:]
            assert time.monotonic() < end, f"{expression} had no result in {PATIENCE:g} s"
            time.sleep(0.05)

    def stop(self):
        """Stop the process."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._log.close()
