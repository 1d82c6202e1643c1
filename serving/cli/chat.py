"""``moe-serving chat``: chats with the model, or asks it one question."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal, TextIO

import typer

from serving.cli.local.state import StateFile, state_folder
from serving.cli.options import (
    ConfigOption,
    GrpcPortOption,
    PortOption,
    SetOption,
    settings_from,
)
from serving.client.chat import ChatClient, Delta, GenerateOptions, GenerateRequest, Message
from serving.client.credentials import access_from
from serving.client.flags import (
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    RestUrlOption,
    ServerNameOption,
)
from serving.client.grpc import GrpcClient
from serving.client.rest import RestClient
from serving.errors import InvalidRequest, ServingError
from serving.settings import served_models

_WELCOME = "Chatting with {model} at {where}. /help lists the commands, Ctrl-D quits.\n"
_HELP = """\
/reset    start a new conversation
/quit     quit (or press Ctrl-D)
/help     show this list
Ctrl-C    stop the current answer
"""


def chat_command(
    question: Annotated[
        str | None,
        typer.Argument(help="Question to ask. If omitted, a conversation starts."),
    ] = None,
    *,
    use_grpc: Annotated[bool, typer.Option("--grpc/--rest", help="Protocol to use.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="Sampling temperature; 0 always picks the most likely token. [default: the "
            "router's]",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            help="Maximum length of the answer including its reasoning, tokens.",
            show_default="the router's",
        ),
    ] = None,
    reasoning: Annotated[
        bool | None,
        typer.Option(
            "--reasoning/--no-reasoning",
            help="Print the model's reasoning.",
            show_default="on a terminal",
        ),
    ] = None,
    rest_url: RestUrlOption = None,
    grpc_address: Annotated[
        str | None,
        typer.Option(
            "--grpc-address",
            metavar="HOST:PORT",
            help="gRPC address of the router; implies --grpc.",
            show_default="the local run's",
            rich_help_panel="Router",
        ),
    ] = None,
    server: Annotated[str | None, typer.Option("--server", hidden=True)] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--name",
            metavar="NAME",
            help="Model id or alias.",
            show_default="the first model",
        ),
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
    """Chat with the model.

    In a conversation, Ctrl-C stops the current answer and Ctrl-D quits. With a question, as an
    argument or on standard input, the command prints the answer and exits. Reasoning is printed
    only on a terminal.

    Without --rest-url and --grpc-address, the command connects to the local run. If there is none,
    or if settings are given, it connects to router.host and the ports in the settings.

    For example:

      moe-serving chat

      moe-serving chat "What is 17+25?"

      echo "sort 5 3 9" | moe-serving chat --grpc
    """
    # --server is the earlier name of both flags.
    use_grpc = use_grpc or grpc_address is not None
    given = (grpc_address if use_grpc else rest_url) or server
    settings = settings_from(config, sets, port=port, grpc_port=grpc_port)
    # The local run may use other ports and another model than the settings here.
    configured = given is not None or config or sets or port or grpc_port
    running = None if configured else StateFile(state_folder()).read()
    model = name or (served_models(settings)[0].name if running is None else running.model)
    router = settings.router
    options = GenerateOptions(model, temperature=temperature, timeout=router.request_timeout)
    access = access_from(
        api_key, ca_file, cert_file, state_folder() if given is None else None, server_name
    )
    client: ChatClient
    if use_grpc:
        local = f"{router.host}:{router.grpc_port}" if running is None else running.grpc_address
        where = given or local
        client = GrpcClient(where, access)
    else:
        scheme = "http" if access.ca_file is None else "https"
        local = f"{scheme}://{router.host}:{router.rest_port}"
        where = given or (local if running is None else running.rest_url)
        client = RestClient(where, access)

    screen = Screen(sys.stdout, show_reasoning=reasoning)
    conversation = Conversation(client, options, screen, system=system, max_tokens=max_tokens)
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise InvalidRequest('no question: moe-serving chat "What is 17+25?"')
    if question is not None:
        conversation.ask(question)
        return
    with contextlib.suppress(ImportError):  # missing in some builds of Python
        import readline  # noqa: F401  gives input() line editing and history
    screen.note(_WELCOME.format(model=model, where=where))
    converse(conversation, screen, _read_line)


Kind = Literal["reasoning", "content", ""]
"""Kind of the text printed last; empty before any text."""


class Screen:
    """Prints answers: the reasoning dimmed, without the model's control characters."""

    def __init__(
        self, out: TextIO, *, show_reasoning: bool | None = None, color: bool | None = None
    ) -> None:
        """Print to ``out``.

        Args:
            out: Output stream.
            show_reasoning: Whether to print the reasoning. None means to print it only if ``out``
                is a terminal.
            color: Whether to use escape sequences. None means to use them only if ``out`` is a
                terminal and NO_COLOR is not set.
        """
        terminal = out.isatty()
        self._out = out
        self._show_reasoning = terminal if show_reasoning is None else show_reasoning
        self._color = (terminal and "NO_COLOR" not in os.environ) if color is None else color

    def show(self, answer: Iterable[Delta]) -> str:
        """Print an answer as it arrives; return its content, without the reasoning."""
        content: list[str] = []
        kind: Kind = ""
        try:
            for part, text in (part for delta in answer for part in delta.parts()):
                if part == "content":
                    content.append(text)
                elif not self._show_reasoning:
                    continue
                shown = text
                if part != kind:
                    # Line breaks between reasoning and answer are the model's layout, not text.
                    shown = text.lstrip("\n")
                    self._switch(kind, part)
                    kind = part
                self._out.write(printable(shown))
                self._out.flush()
        finally:
            self._switch(kind, "")
            self._out.write("\n" if kind else "")
            self._out.flush()
        return "".join(content)

    def note(self, text: str) -> None:
        """Print a message of the command, dimmed."""
        dim, reset = ("\x1b[2m", "\x1b[0m") if self._color else ("", "")
        self._out.write(f"{dim}{text}{reset}")
        self._out.flush()

    def _switch(self, before: Kind, after: Kind) -> None:
        if before == "reasoning":
            self._out.write("\x1b[0m" if self._color else "")
            self._out.write("\n\n" if after else "")
        if after == "reasoning":
            self._out.write("\x1b[2m" if self._color else "")


def printable(text: str) -> str:
    """Remove control characters, which could for example move the cursor."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


@dataclass(slots=True)
class Conversation:
    """The messages of a conversation, without questions whose answers are incomplete."""

    client: ChatClient
    options: GenerateOptions
    screen: Screen
    system: str | None = None
    max_tokens: int | None = None
    messages: tuple[Message, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        """Begin with the system message."""
        self.reset()

    def reset(self) -> None:
        """Drop all messages except the system message."""
        self.messages = () if self.system is None else (Message("system", self.system),)

    def ask(self, question: str) -> None:
        """Send the question with the messages so far, and print the answer.

        Raises:
            ServingError: The request failed; the question is not kept.
            KeyboardInterrupt: The user stopped the answer; the question is not kept.
        """
        asked = (*self.messages, Message("user", question))
        request = GenerateRequest(asked, self.max_tokens)
        answer = self.screen.show(self.client.generate(request, self.options))
        self.messages = (*asked, Message("assistant", answer.strip()))


def converse(
    conversation: Conversation, screen: Screen, read_line: Callable[[], str | None]
) -> None:
    """Answer lines until ``read_line`` returns None or ``/quit``."""
    while True:
        try:
            line = read_line()
        except KeyboardInterrupt:
            screen.note("\n(Ctrl-D or /quit quits)\n")
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
            screen.note("(new conversation)\n")
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
