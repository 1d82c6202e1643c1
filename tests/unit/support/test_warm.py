import os
import signal
import subprocess
import sys

import pytest

from tests.support import warm
from tests.support.waiting import PATIENCE, wait_until

WAITS = "import signal; print('waits', flush=True); signal.pause()"


@pytest.fixture(scope="module")
def server():
    made = warm.Server(["colorsys"])
    yield made
    assert made.close() > 0


@pytest.fixture(params=["forked", "new"])
def start(request, server, monkeypatch, tmp_path):
    """Start a program; its output is the second result."""
    if request.param == "forked":
        monkeypatch.setenv(warm.VARIABLE, server.path)
    else:
        monkeypatch.delenv(warm.VARIABLE, raising=False)
    file = tmp_path / "log"

    def begin(*words, **options):
        with file.open("wb") as log:
            return warm.start(words, log=log, **options), file

    return begin


def test_a_program_has_its_arguments_environment_and_folder(start, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; print(sys.argv, os.environ, os.getcwd()); sys.exit(3)"
    program, output = start("-c", code, "a b", environment={"ONLY": "this"})
    assert program.wait(PATIENCE) == program.poll() == 3
    text = output.read_text()
    assert "['-c', 'a b']" in text
    assert "'ONLY': 'this'" in text
    assert "PATH" not in text
    assert str(tmp_path) in text


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("print('out')", 0, "out"),
        ("import sys; print('err', file=sys.stderr)", 0, "err"),
        ("raise SystemExit('why')", 1, "why"),
        ("raise SystemExit", 0, ""),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_how_a_program_ends(start, code, status, said):
    program, output = start("-c", code)
    assert program.wait(PATIENCE) == status
    assert said in output.read_text()


def test_a_module_is_the_main_program(start):
    program, output = start("-m", "this")
    assert program.wait(PATIENCE) == 0
    assert "Beautiful is better than ugly." in output.read_text()


def test_a_program_is_signalled_by_its_process_id(start):
    program, output = start("-c", WAITS)
    wait_until(output.read_text, "the program")
    assert program.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.01)
    os.kill(program.pid, 0)
    program.send_signal(signal.SIGTERM)
    assert program.wait(PATIENCE) == -signal.SIGTERM
    program.kill()  # it has already ended: no effect


def test_only_a_forked_program_has_the_modules(server, monkeypatch, tmp_path):
    code = "import sys; print('colorsys' in sys.modules)"
    monkeypatch.setenv(warm.VARIABLE, server.path)
    with (tmp_path / "log").open("wb") as log:
        assert warm.start(["-c", code], log=log).wait(PATIENCE) == 0
    assert (tmp_path / "log").read_text() == "True\n"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert new.stdout == b"False\n"


def test_the_command_is_a_python_with_standard_streams(server):
    code = "import sys; print(sys.stdin.read().upper()); sys.exit(7)"
    command = [sys.executable, "-S", "-E", warm.__file__, server.path, "-u", "-c", code]
    done = subprocess.run(command, input="hello", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "HELLO\n", "")


def test_the_command_for_a_shell(server, monkeypatch):
    for path in (server.path, None):
        if path is None:
            monkeypatch.delenv(warm.VARIABLE)
        else:
            monkeypatch.setenv(warm.VARIABLE, path)
        code = "import sys; print('colorsys' in sys.modules)"
        done = subprocess.run(
            ["sh", "-c", f'{warm.command()} -c "{code}"'], capture_output=True, check=True
        )
        assert done.stdout.decode().strip() == str(path is not None)


def test_a_program_ends_with_its_client(server, tmp_path):
    command = [sys.executable, "-S", "-E", warm.__file__, server.path]
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    with subprocess.Popen([*command, "-c", code], stdout=subprocess.PIPE) as client:
        pid = int(client.stdout.readline())
        client.kill()

    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, "the end of the program")
