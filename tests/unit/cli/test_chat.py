"""chat: output, the conversation, and the command on fake routers."""

import io
from collections.abc import Iterator

import pytest

from serving import errors
from serving.cli import chat
from serving.cli.local.state import RunState, StateFile
from serving.cli.main import main
from serving.client.chat import Delta, GenerateOptions, Message
from serving.engine.processes import ProcessRecord
from tests.support.ports import held_port
from tests.unit.client.fake_routers import Inference, chunk, grpc_router, rest_router

ANSWER = [Delta(reasoning="\n1+1"), Delta(reasoning=" is 2"), Delta("\n\n2")]


class ScriptedClient:
    """Yields given answers; exceptions among them are raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[list[Message]] = []

    def generate(self, request, options):
        self.asked.append(list(request.messages))
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def talk(client, *lines, system=None):
    """Run a conversation of ``lines`` (exceptions are key presses); return the output."""
    out = io.StringIO()
    screen = chat.Screen(out, show_reasoning=True, color=False)
    conversation = chat.Conversation(client, GenerateOptions("m"), screen, system=system)
    pending = [*lines, None]

    def read():
        line = pending.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    chat.converse(conversation, screen, read)
    return out.getvalue()


@pytest.mark.parametrize(
    ("show", "color", "printed"),
    [
        pytest.param(True, False, "1+1 is 2\n\n2\n", id="plain"),
        pytest.param(True, True, "\x1b[2m1+1 is 2\x1b[0m\n\n2\n", id="dimmed"),
        pytest.param(False, True, "2\n", id="hidden"),
        pytest.param(None, None, "2\n", id="in-a-pipe"),
    ],
)
def test_reasoning_is_set_off_from_the_answer(show, color, printed):
    out = io.StringIO()
    content = chat.Screen(out, show_reasoning=show, color=color).show(iter(ANSWER))
    assert out.getvalue() == printed
    assert content == "\n\n2"


def test_an_answer_that_breaks_off_leaves_the_terminal_as_it_was():
    def broken() -> Iterator[Delta]:
        yield Delta(reasoning="hm")
        raise errors.GroupLost("gone")

    out = io.StringIO()
    with pytest.raises(errors.GroupLost):
        chat.Screen(out, show_reasoning=True, color=True).show(broken())
    assert out.getvalue() == "\x1b[2mhm\x1b[0m\n"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\x1b[2Jb", "a[2Jb"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x07\x00\x7f\x9b", ""),
        ("héé 你好", "héé 你好"),
    ],
    ids=["escape", "layout", "controls", "letters"],
)
def test_a_model_cannot_drive_the_terminal(text, printed):
    assert chat.printable(text) == printed


def test_a_conversation_is_remembered_without_the_reasoning():
    client = ScriptedClient(ANSWER, [Delta("3")])
    talk(client, "1+1?", "and 1 more?", system="be short")
    assert client.asked[1] == [
        Message("system", "be short"),
        Message("user", "1+1?"),
        Message("assistant", "2"),
        Message("user", "and 1 more?"),
    ]


def test_reset_forgets_all_but_the_system_message():
    client = ScriptedClient(ANSWER, ANSWER)
    talk(client, "1+1?", "/reset", "again", system="s")
    assert client.asked[1] == [Message("system", "s"), Message("user", "again")]


@pytest.mark.parametrize(
    "trouble", [KeyboardInterrupt(), errors.Overloaded("too much")], ids=["ctrl-c", "error"]
)
def test_a_turn_that_did_not_finish_is_forgotten(trouble):
    client = ScriptedClient([Delta("half"), trouble], ANSWER)
    shown = talk(client, "first", "second")
    assert client.asked[1] == [Message("user", "second")]
    assert ("(stopped)" in shown) or ("error: too much" in shown)


def test_keys_and_commands():
    client = ScriptedClient()
    shown = talk(client, "", "  ", KeyboardInterrupt(), "/help", "/nonsense", "/quit", "never")
    assert client.asked == []
    assert "Ctrl-D or /quit quits" in shown
    assert shown.count("/reset    start a new") == 2


def test_one_question_in_a_pipe_prints_the_answer_alone(capsys):
    with grpc_router(Inference()) as target:
        assert main(["chat", "1+1?", "--grpc-address", target]) == 0
    assert capsys.readouterr().out == "2\n"


def test_a_piped_question(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("1+1?\n"))
    servicer = Inference()
    with grpc_router(servicer) as target:
        assert main(["chat", "--grpc", "--server", target]) == 0
    assert servicer.requests[0].messages[0].content == "1+1?"
    assert capsys.readouterr().out == "2\n"


def test_an_empty_pipe_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["chat"]) == 1
    assert capsys.readouterr().err.startswith("error: no question")


def test_nothing_running_is_one_clear_line(capsys):
    port = held_port()
    assert main(["chat", "1+1?", "--port", str(port)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == (
        f"error: cannot connect to http://127.0.0.1:{port}: connection refused"
    )
    assert "make run" in shown.err


@pytest.mark.parametrize(
    "flags", [pytest.param([], id="REST"), pytest.param(["--grpc"], id="gRPC")]
)
def test_without_an_address_it_talks_to_what_runs_here(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    data = chunk({"content": "2"}) + b"data: [DONE]\n\n"
    servicer = Inference()
    with rest_router(200, data) as (url, bodies), grpc_router(servicer) as target:
        StateFile(tmp_path).write(
            RunState(
                up=ProcessRecord(1, 5.0, "python"),
                processes=(),
                rest_url=url,
                grpc_address=target,
                join_address="",
                groups=1,
                ranks=2,
                model="mine",
                started_at=1.0,
                log_folder="/l",
                ray_address="",
                ray_token="t",
                ray_folder="",
                dashboard_url="",
                ready=True,
            )
        )
        assert main(["chat", "1+1?", *flags]) == 0
    assert capsys.readouterr().out == "2\n"
    models = [request.model for request in servicer.requests] + [body["model"] for body in bodies]
    assert models == ["mine"]
