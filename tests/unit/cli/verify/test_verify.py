"""verify: comparison, exit codes, requests, reference files."""

import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cli.main import main
from serving.cli.options import settings_from
from serving.cli.verify import reference, verify
from serving.cli.verify.comparison import Difference, compare, make_prompts, table
from serving.cli.verify.layouts import LayoutNotStarted
from serving.errors import EngineError, NotReady, SettingsError
from tests.support.ports import held_port

KEPT = '{"model": "pocket-r1", "max_tokens": 5, "prompts": ["a"], "answers": [[7]], "version": 1}'


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
    assert "prompt 0 ('What is 1+1?'), token 1: expected 2, got end of answer" in other


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
    """Replace layouts by answers; return the dictionary of answers by number of ranks."""
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
        pytest.param([[1, 2]], [[1, 2]], 0, "all 2 layouts generated the same tokens", id="equal"),
        pytest.param([[1, 2]], [[1, 3]], 1, "1 of 1 DIFFERENT", id="different"),
        pytest.param([[]], [[]], 1, "NO TOKENS", id="empty"),
        pytest.param(
            [[1]],
            LayoutNotStarted("no room for it"),
            2,
            "no room for it",
            id="not-started",
        ),
        pytest.param([[1]], EngineError("it broke"), 1, "it broke", id="request-failed"),
    ],
)
def test_exit_codes(layouts, capsys, one, two, code, shown):
    layouts.update({1: one, 2: two})
    assert main(["verify", "--ranks", "1,2", "--prompts", "1"]) == code
    seen = capsys.readouterr()
    assert shown in seen.out + seen.err


def test_flags_are_passed_on_to_up(tmp_path):
    file = tmp_path / "s.yaml"
    assert verify.flags_for_up(file, ["a.b=1"], "/model", "mtp") == [
        "--config", str(file),
        "--set", "engine.dtype=float32",
        "--set", "a.b=1",
        "--set", "model.path=/model",
        "--set", "engine.speculative=mtp",
    ]  # fmt: skip


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
        pytest.param(503, {"error": {"message": "no group"}}, "returned HTTP 503", id="refused"),
        pytest.param(200, {"choices": [{"text": "x"}]}, "no token ids", id="no-ids"),
        pytest.param(200, {"choices": [{"token_ids": []}]}, "no token ids", id="empty"),
        pytest.param(200, {}, "no token ids", id="no-choices"),
    ],
)
def test_ask_says_what_went_wrong(status, content, message):
    with router(lambda _: (status, content)) as url, pytest.raises(EngineError, match=message):
        verify.ask(url, settings_from(), ["a", "b"], 5)


def test_ask_where_nobody_answers():
    port = held_port()
    with pytest.raises(NotReady, match="cannot connect"):
        verify.ask(f"http://127.0.0.1:{port}", settings_from(), ["a"], 5)


def test_answers_are_kept_and_compared_with_later(layouts, capsys, tmp_path):
    kept = str(tmp_path / "one.json")
    layouts.update({1: [[1, 2]], 2: [[1, 2]], 7: [[1, 3]]})
    asked = ["verify", "--prompts", "1", "--max-tokens", "9"]
    assert main([*asked, "--ranks", "1", "--save", kept]) == 0
    found = reference.load(tmp_path / "one.json", "pocket-r1")
    assert (found.prompts, found.max_tokens, found.answers) == (make_prompts(1, 0), 9, [[1, 2]])
    assert main(["verify", "--ranks", "2", "--against", kept]) == 0
    assert re.search(r"one.json .* reference\n2 ranks .* equal", capsys.readouterr().out)
    assert main(["verify", "--ranks", "", "--rest-url", "7", "--against", kept]) == 1
    assert "token 1: expected 2, got 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "cannot read", id="missing"),
        pytest.param("{", "not a file written by verify --save", id="broken"),
        pytest.param(
            '{"model": "pocket-r1", "answers": [[1]]}',
            "not a file written by verify --save",
            id="incomplete",
        ),
        pytest.param(KEPT.replace("pocket-r1", "other"), "answers of other", id="other-model"),
        pytest.param(KEPT.replace("[[7]]", "[]"), "one answer per prompt", id="no-answer"),
        pytest.param(KEPT.replace('"version": 1', '"version": 9'), "version 9", id="version"),
    ],
)
def test_what_cannot_be_compared_with_is_said(layouts, capsys, tmp_path, content, said):
    file = tmp_path / "kept.json"
    if content is not None:
        file.write_text(content, "utf-8")
    assert main(["verify", "--ranks", "1", "--against", str(file)]) == 1
    assert said in capsys.readouterr().err


def test_running_servers_are_compared_too(layouts, capsys):
    layouts[1] = [[4]]
    layouts[7] = [[5]]
    assert main(["verify", "--ranks", "1", "--prompts", "1", "--rest-url", "7"]) == 1
    assert "expected 4, got 5" in capsys.readouterr().out
