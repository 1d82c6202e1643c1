"""The fork server, with processes that need no vLLM; tests/e2e/served has the real ones."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.engine.fork_server import _Context, fork_engines
from tests.support.waiting import PATIENCE

SCRIPT = """
import json, os, sys
from multiprocessing import forkserver
from serving.engine import fork_server

folder = sys.argv[1]
fork_server._IMPORTS = "wave"
os.environ["EARLY"] = "server"
server = fork_server.start_fork_server(folder)
os.environ["EARLY"] = os.environ["LATE"] = "process"
reader, writer = fork_server._Context().Pipe(duplex=False)
process = fork_server._Context().Process(target=exec, args=(
    "import json, os, sys; writer.send(dict("
    "parent=os.getppid(), early=os.environ['EARLY'], late=os.environ['LATE'],"
    " imported='wave' in sys.modules))", {"writer": writer}))
process.start()
said = reader.recv()
process.join(60)
print(json.dumps(said | {"server": server, "code": process.exitcode,
    "sockets": [name for name in os.listdir(folder) if name.startswith("listener")]}), flush=True)
sys.stdin.readline()
"""


def test_a_process_is_forked_with_what_is_imported_and_its_own_environment(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        output = json.loads(client.stdout.readline())
        server = psutil.Process(output["server"])
        assert output["parent"] == server.pid
        assert server.ppid() == client.pid
        assert output["imported"]
        assert (output["early"], output["late"]) == ("process", "process")
        assert output["code"] == 0
        assert len(output["sockets"]) == 1
        client.kill()
    # No process is left that could use it.
    assert psutil.wait_procs([server], timeout=PATIENCE)[1] == []


def test_vllm_takes_its_processes_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine import coordinator, utils

    for module in (coordinator, utils):
        # A name of the module, because that is what the patch replaces.
        assert "context = get_mp_context()" in inspect.getsource(module)
        monkeypatch.setattr(module, "get_mp_context", module.get_mp_context)
    fork_engines()
    for module in (coordinator, utils):
        assert isinstance(module.get_mp_context(), _Context)
