"""verify: what counts as equal, exit codes, and that nothing is left running."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cli import verify
from serving.cli.comparison import Difference, compare, make_prompts, table
from serving.cli.main import main
from serving.cli.options import settings_from
from serving.errors import EngineError, NotReady, SettingsError


@pytest.mark.parametrize(
    ("reference", "answers", "differing", "first"),
    [
        pytest.param([[1, 2]], [[1, 2]], 0, None, id="equal"),
        pytest.param([[1, 2]], [[1, 3]], 1, Difference(0, 1, 2, 3), id="token"),
        pytest.param([[1, 2]], [[1]], 1, Difference(0, 1, 2, None), id="shorter"),
        pytest.param([[1]], [[1, 2]], 1, Difference(0, 1, None, 2), id="longer"),
        pytest.param([[1], [2]], [[1]], 1, Difference(1, 0, 2, None), id="answer-missing"),
        pytest.param([[1]], [[1], [2]], 1, Difference(1, 0, None, 2), id="answer-too-many"),
        pytest.param(
            [[1], [2, 3], [4]], [[1], [2, 9], [5]], 2, Difference(1, 1, 3, 9), id="first-of-two"
        ),
    ],
)
def test_compare(reference, answers, differing, first):
    comparison = compare("x", reference, answers)
    assert (comparison.differing, comparison.first) == (differing, first)
    assert comparison.equal == (differing == 0)


@pytest.mark.parametrize("answers", [[], [[]], [[], []]], ids=["none", "empty", "all-empty"])
def test_nothing_generated_is_never_equal(answers):
    assert not compare("x", answers, answers).equal


token_lists = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5)


@given(token_lists, token_lists)
def test_differences_are_found_exactly_where_they_are(left, right):
    comparison = compare("x", left, right)
    pairs = [
        (left[i] if i < len(left) else [], right[i] if i < len(right) else [])
        for i in range(max(len(left), len(right)))
    ]
    assert comparison.differing == sum(a != b for a, b in pairs)
    if comparison.first is not None:
        at = comparison.first
        a, b = pairs[at.prompt]
        assert a[: at.position] == b[: at.position]
        assert a[at.position : at.position + 1] != b[at.position : at.position + 1]


def test_prompts_are_reproducible_and_of_different_lengths():
    assert make_prompts(24, 7) == make_prompts(24, 7)
    assert make_prompts(24, 7) != make_prompts(24, 8)
    lengths = {len(prompt) for prompt in make_prompts(24, 0)}
    assert len(lengths) > 12
    assert max(lengths) > 5 * min(lengths)


def test_the_table_names_prompt_position_and_tokens():
    shown = table(
        [compare("1 rank", [[1, 2]], [[1, 2]]), compare("2 ranks", [[1, 2]], [[1]])],
        ["What is 1+1?"],
    )
    first, reference, other = shown.splitlines()
    assert first.split() == ["layout", "prompts", "tokens", "result", "first", "difference"]
    assert reference.split()[-1] == "reference"
    assert "1 of 1 DIFFERENT" in other
    assert "prompt 0 ('What is 1+1?'), token 1: 2 expected, the end came" in other


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,2,4", [1, 2, 4]), ("2", [2]), (" 1 , 2,", [1, 2])],
)
def test_layouts(text, expected):
    assert verify.parse_layouts(text) == expected


@pytest.mark.parametrize("text", ["", ",", "0", "1,-2", "one", "1;2"])
def test_what_is_no_layout(text):
    with pytest.raises(SettingsError, match="--ranks"):
        verify.parse_layouts(text)


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch):
    """Answers by number of ranks instead of real layouts; returns the dictionary to fill."""
    answers: dict[int, list[list[int]] | Exception] = {}

    @contextmanager
    def running(ranks, settings, passed_on):
        if isinstance(answers[ranks], Exception):
            raise answers[ranks]
        yield str(ranks)

    monkeypatch.setattr(verify, "running", running)
    monkeypatch.setattr(verify, "ask", lambda url, *_: answers[int(url)])
    return answers


@pytest.mark.parametrize(
    ("one", "two", "code", "shown"),
    [
        pytest.param([[1, 2]], [[1, 2]], 0, "all 2 layouts gave the same tokens", id="equal"),
        pytest.param([[1, 2]], [[1, 3]], 1, "1 of 1 DIFFERENT", id="different"),
        pytest.param([[]], [[]], 1, "NO TOKENS", id="empty"),
        pytest.param(
            [[1]], verify.LayoutNotStarted("no room for it"), 2, "no room for it", id="not-started"
        ),
        pytest.param([[1]], EngineError("it broke"), 1, "it broke", id="request-failed"),
    ],
)
def test_exit_codes(layouts, capsys, one, two, code, shown):
    layouts.update({1: one, 2: two})
    assert main(["verify", "--ranks", "1,2", "--prompts", "1"]) == code
    seen = capsys.readouterr()
    assert shown in seen.out + seen.err


def test_too_little_memory_is_said_before_anything_is_started(monkeypatch, capsys):
    monkeypatch.setattr(verify, "memory_shortage", lambda needed: needed)
    monkeypatch.setattr(verify, "shown", lambda *_: pytest.fail("started"))
    assert main(["verify", "--ranks", "4"]) == 2
    assert "4 ranks need about 11.6 GiB" in capsys.readouterr().err


def test_a_layout_is_stopped_whatever_happens(monkeypatch):
    commands: list[list[str]] = []

    def run(command, *_, **__):
        commands.append(command[1:])
        return 1, ["a", "b"]

    monkeypatch.setattr(verify, "shown", run)
    monkeypatch.setattr(subprocess, "run", run)
    settings = settings_from(sets=["engine.kind=fake"])
    with pytest.raises(verify.LayoutNotStarted, match="b"), verify.running(2, settings, ["--x"]):
        pytest.fail("it did not start")
    assert [command[2] for command in commands] == ["up", "down"]
    assert commands[0][:4] == ["-m", "serving", "up", "--detach"]
    assert "--x" in commands[0]


def test_a_start_that_takes_too_long_is_not_started_and_stopped(monkeypatch):
    commands = []

    def run(command, *_, **__):
        commands.append(command[3])
        return None, []

    monkeypatch.setattr(verify, "shown", run)
    monkeypatch.setattr(subprocess, "run", run)
    settings = settings_from(sets=["engine.kind=fake", "group.start_timeout=5"])
    with (
        pytest.raises(verify.LayoutNotStarted, match="not ready after 125 s"),
        verify.running(1, settings, []),
    ):
        pytest.fail("it did not start")
    assert commands == ["up", "down"]


def test_flags_are_passed_on_to_up(tmp_path):
    file = tmp_path / "s.yaml"
    assert verify._pass_through(file, ["a.b=1"], "/model", "mtp") == [
        "--config", str(file),
        "--set", "engine.dtype=float32",
        "--set", "a.b=1",
        "--set", "model.path=/model",
        "--set", "engine.speculative=mtp",
    ]  # fmt: skip


def test_free_ports_are_different():
    assert len(set(verify.free_ports(20))) == 20


@contextmanager
def router(answer):
    """An HTTP server that answers completions with ``answer(body) -> (status, object)``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content = answer(body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_ask_sends_greedy_prompts_and_keeps_their_order():
    bodies = []

    def answer(body):
        bodies.append(body)
        return 200, {"choices": [{"token_ids": [len(body["prompt"])]}]}

    with router(answer) as url:
        got = verify.ask(url, settings_from(), ["a", "bbb", "cc"], 5)
    assert got == [[1], [3], [2]]
    assert {body["temperature"] for body in bodies} == {0.0}
    assert {body["max_tokens"] for body in bodies} == {5}
    assert all(body["return_token_ids"] and body["ignore_eos"] for body in bodies)


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        pytest.param(503, {"error": {"message": "no group"}}, "answered 503", id="refused"),
        pytest.param(200, {"choices": [{"text": "x"}]}, "no token ids", id="no-ids"),
        pytest.param(200, {"choices": [{"token_ids": []}]}, "no token ids", id="empty"),
        pytest.param(200, {}, "no token ids", id="no-choices"),
    ],
)
def test_ask_says_what_went_wrong(status, content, message):
    with router(lambda _: (status, content)) as url, pytest.raises(EngineError, match=message):
        verify.ask(url, settings_from(), ["a", "b"], 5)


def test_ask_where_nobody_answers():
    (port,) = verify.free_ports(1)
    with pytest.raises(NotReady, match="nothing answers"):
        verify.ask(f"http://127.0.0.1:{port}", settings_from(), ["a"], 5)


def test_running_servers_are_compared_too(layouts, capsys):
    layouts[1] = [[4]]
    layouts[7] = [[5]]
    assert main(["verify", "--ranks", "1", "--prompts", "1", "--server", "7"]) == 1
    assert "4 expected, 5 came" in capsys.readouterr().out


def test_up_is_run_with_this_interpreter(monkeypatch):
    seen = []

    def up(command, environment, _):
        seen.append((command[0], environment["MOE_SERVING_STATE_DIR"]))
        return 0, []

    monkeypatch.setattr(verify, "shown", up)
    monkeypatch.setattr(subprocess, "run", lambda command, env, **_: up(command, env, _))
    with verify.running(1, settings_from(sets=["engine.kind=fake"]), []) as url:
        assert url.startswith("http://127.0.0.1:")
    (up, folder), (down, same_folder) = seen
    assert up == down == sys.executable
    assert folder == same_folder


def test_what_a_command_prints_is_shown_and_its_end_kept(capsys):
    program = "import sys\nfor n in range(20): print('line', n)\nsys.exit(3)"
    code, said = verify.shown([sys.executable, "-c", program], os.environ, 60.0)
    assert code == 3
    assert [*said] == [f"line {n}" for n in range(5, 20)]
    assert "  line 0\n  line 1\n" in capsys.readouterr().out


def test_a_command_that_takes_too_long_is_killed():
    program = "import time; print('here', flush=True); time.sleep(600)"
    code, _ = verify.shown([sys.executable, "-c", program], os.environ, 0.5)
    assert code is None
