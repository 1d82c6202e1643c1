"""``moe-serving chat``: talk to the model, in a conversation or with one question."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, TextIO

import typer

from serving.cli.local.state import StateFile, state_folder
from serving.cli.options import (
    ConfigOption,
    GrpcPortOption,
    PortOption,
    SetOption,
    settings_from,
)
from serving.client.chat import ChatClient, GrpcChatClient, Piece, RestChatClient, Sampling, Turn
from serving.client.credentials import (
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    ServerNameOption,
    access_from,
)
from serving.errors import InvalidRequest, ServingError

_WELCOME = "Talking to {model} at {where}. /help shows the commands, Ctrl-D leaves.\n"
_HELP = """\
/reset    forget the conversation
/quit     leave (as Ctrl-D does)
/help     this list
Ctrl-C    stop the answer
"""


def chat_command(
    question: Annotated[
        str | None,
        typer.Argument(help="One question; without it a conversation begins."),
    ] = None,
    *,
    use_grpc: Annotated[bool, typer.Option("--grpc/--rest", help="Protocol to talk over.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="0: always the most likely token."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help="Longest answer in tokens, reasoning included."),
    ] = None,
    reasoning: Annotated[
        bool | None,
        typer.Option(
            "--reasoning/--no-reasoning",
            help="Show the model's reasoning. [default: on a terminal]",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="ADDRESS",
            help="Where the router is: http://host:port, or host:port with --grpc. "
            "[default: what runs here, else router.host with the ports below]",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="MODEL", help="Model id. [default: model.name]"),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Talk to the model.

    In a conversation, Ctrl-C stops the answer and Ctrl-D leaves. With a question as argument,
    or piped in, the answer is printed and the command ends; in a pipe without the reasoning.

    For example:

      moe-serving chat

      moe-serving chat "What is 17+25?"

      echo "sort 5 3 9" | moe-serving chat --grpc
    """
    settings = settings_from(config, sets, port=port, grpc_port=grpc_port)
    told = server is not None or config or sets or port or grpc_port
    # What runs here may have been given other ports, or be behind another name.
    running = None if told else StateFile(state_folder()).read()
    model = name or (settings.model.name if running is None else running.model)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    router = settings.router
    access = access_from(
        api_key, ca_file, cert_file, state_folder() if server is None else None, server_name
    )
    client: ChatClient
    if use_grpc:
        local = f"{router.host}:{router.grpc_port}" if running is None else running.grpc_address
        where = server or local
        client = GrpcChatClient(
            where, model, sampling, timeout=router.request_timeout, access=access
        )
    else:
        scheme = "http" if access.ca_file is None else "https"
        local = f"{scheme}://{router.host}:{router.rest_port}"
        where = server or (local if running is None else running.rest_url)
        client = RestChatClient(
            where, model, sampling, timeout=router.request_timeout, access=access
        )

    screen = Screen(sys.stdout, show_reasoning=reasoning)
    conversation = Conversation(client, screen, system=system)
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise InvalidRequest('no question: moe-serving chat "What is 17+25?"')
    if question is not None:
        conversation.ask(question)
        return
    with contextlib.suppress(ImportError):  # some builds of Python lack it
        import readline  # noqa: F401  gives input() line editing and history
    screen.note(_WELCOME.format(model=model, where=where))
    converse(conversation, screen, _read_line)


class Screen:
    """Prints pieces: the reasoning dimmed, control characters of the model left out."""

    def __init__(
        self, out: TextIO, *, show_reasoning: bool | None = None, color: bool | None = None
    ) -> None:
        """Print to ``out``; what is not said follows from whether it is a terminal."""
        terminal = out.isatty()
        self._out = out
        self._show_reasoning = terminal if show_reasoning is None else show_reasoning
        self._color = (terminal and "NO_COLOR" not in os.environ) if color is None else color

    def show(self, pieces: Iterable[Piece]) -> str:
        """Print ``pieces`` as they come; return the content (without the reasoning)."""
        content: list[str] = []
        kind = ""
        try:
            for piece in pieces:
                if piece.kind == "content":
                    content.append(piece.text)
                elif not self._show_reasoning:
                    continue
                text = piece.text
                if piece.kind != kind:
                    # What models put between reasoning and answer is layout, not text.
                    text = text.lstrip("\n")
                    self._switch(kind, piece.kind)
                    kind = piece.kind
                self._out.write(printable(text))
                self._out.flush()
        finally:
            self._switch(kind, "")
            self._out.write("\n" if kind else "")
            self._out.flush()
        return "".join(content)

    def note(self, text: str) -> None:
        """Print something that is not the model's."""
        dim, reset = ("\x1b[2m", "\x1b[0m") if self._color else ("", "")
        self._out.write(f"{dim}{text}{reset}")
        self._out.flush()

    def _switch(self, before: str, after: str) -> None:
        if before == "reasoning":
            self._out.write("\x1b[0m" if self._color else "")
            self._out.write("\n\n" if after else "")
        if after == "reasoning":
            self._out.write("\x1b[2m" if self._color else "")


def printable(text: str) -> str:
    """Drop control characters: a model's output must not move the cursor or worse."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


@dataclass(slots=True)
class Conversation:
    """What was said so far; a turn that failed or was stopped before it began is forgotten."""

    client: ChatClient
    screen: Screen
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with the system message."""
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns = [] if self.system is None else [Turn("system", self.system)]

    def ask(self, question: str) -> None:
        """Send ``question`` with what was said before and print the answer.

        Raises:
            ServingError: the router refused or failed; the turn is forgotten.
            KeyboardInterrupt: the user stopped the answer; the turn is forgotten.
        """
        asked = [*self.turns, Turn("user", question)]
        answer = self.screen.show(self.client.stream(asked))
        self.turns = [*asked, Turn("assistant", answer.strip())]


def converse(
    conversation: Conversation, screen: Screen, read_line: Callable[[], str | None]
) -> None:
    """Answer lines until there are no more (``None``) or ``/quit``."""
    while True:
        try:
            line = read_line()
        except KeyboardInterrupt:
            screen.note("\n(Ctrl-D or /quit leaves)\n")
            continue
        if line is None:
            screen.note("\n")
            return
        line = line.strip()
        if not line:
            continue
        if line in {"/quit", "/exit"}:
            return
        if line == "/reset":
            conversation.reset()
            screen.note("(forgotten)\n")
        elif line.startswith("/"):
            screen.note(_HELP)
        else:
            try:
                conversation.ask(line)
            except KeyboardInterrupt:
                screen.note("(stopped)\n")
            except ServingError as error:
                screen.note(f"error: {error}\n")


def _read_line() -> str | None:
    try:
        return input("you> ")
    except EOFError:
        return None
