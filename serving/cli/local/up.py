"""``moe-serving up``: the whole system on this machine, in the foreground or background."""

import signal
import sys
import time
from types import FrameType
from typing import Annotated, TextIO

import typer

from serving.cli.local import background, ports
from serving.cli.local.local_secrets import with_local_secrets
from serving.cli.local.progress import make_progress
from serving.cli.local.state import StateFile, state_folder
from serving.cli.options import (
    ConfigOption,
    GroupsOption,
    GrpcPortOption,
    InsecureOption,
    JoinPortOption,
    ModelsOption,
    PortOption,
    RanksOption,
    SetOption,
    SpeculativeOption,
    settings_from,
)
from serving.client.chat import GenerateOptions, GenerateRequest, Message
from serving.client.credentials import NO_ACCESS, Access
from serving.client.rest import RestClient
from serving.clock import SystemClock
from serving.edge.auth.security import Security, require_secure_bind
from serving.errors import ServingError
from serving.ledger.budget import why_no_budgets
from serving.settings import ServedModel, Settings, served_models

SAMPLE_QUESTION = "What is 17+25?"


def up_command(
    config: ConfigOption = None,
    sets: SetOption = None,
    groups: GroupsOption = None,
    ranks: RanksOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    join_port: JoinPortOption = None,
    speculative: SpeculativeOption = None,
    model: ModelsOption = None,
    insecure: InsecureOption = None,
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; return when ready.")
    ] = False,
    sample: Annotated[bool, typer.Option(help="Ask a sample question when ready.")] = True,
) -> int:
    """Start a router and groups of expert-parallel ranks on this machine.

    Shows the start-up progress, prints a line that begins with READY and contains the URLs, asks a
    sample question, and stays in the foreground. Ctrl-C stops all processes; a second Ctrl-C does
    not wait for running requests. Port 0 selects a free port.
    """
    settings = settings_from(
        config, sets, groups=groups, ranks=ranks, port=port, grpc_port=grpc_port,
        join_port=join_port, speculative=speculative, models=model, insecure=insecure,
    )  # fmt: skip
    with ports.with_chosen_ports(settings) as chosen:
        return _up(chosen, detach=detach, sample=sample)


def _up(settings: Settings, *, detach: bool, sample: bool) -> int:
    state = StateFile(state_folder())
    if detach:
        return background.up_in_background(settings, state, sample=sample)
    with state.hold():
        background.clean_up_after_crash(state)
        settings = with_local_secrets(settings, state.folder)
        require_secure_bind(settings)
        # The router loads these files again; here errors are reported before Ray starts.
        names = [each.name for each in served_models(settings)]
        no_budgets = why_no_budgets(settings.ledger, names, time.time())
        Security.load(settings.security, SystemClock(), no_budgets)
        ports.require_free(settings)
        return Foreground(settings, state, sys.stdout).run(sample=sample)


class StopRequested(BaseException):
    """SIGINT, SIGTERM or SIGHUP was received."""


class Foreground:
    """An ``up`` in the foreground: its output, its signals and its exit code."""

    def __init__(self, settings: Settings, state: StateFile, out: TextIO) -> None:
        # Importing Ray takes seconds, so report settings errors first.
        from serving.cli.local.stack import Stack

        self._settings = settings
        self._out = out
        self._progress = make_progress(sys.stderr)
        self._stack = Stack(settings, state, self._progress, SystemClock())
        self._signals = 0
        self._stopping = False

    def run(self, *, sample: bool) -> int:
        """Start, serve until a signal arrives, and stop; return the exit code.

        Args:
            sample: Whether to ask the sample question.

        Raises:
            ServingError: A part failed; everything has been stopped.
        """
        self._take_signals()
        code = 130
        try:
            with self._progress:
                self._stack.start(after_ray=self._take_signals)
            self._say_ready()
            code = 0
            # Without groups (the autoscaler may add them later) nothing can answer.
            if sample and any(
                pool.settings.group.count for pool in served_models(self._settings)[0].pools
            ):
                self._ask()
            if self._out.isatty():
                self._say("press Ctrl-C to stop everything")
            self._stack.mark_ready()
            self._stack.watch(lambda text: self._say(f"{time.strftime('%H:%M:%S')} {text}"))
        except (StopRequested, KeyboardInterrupt, SystemExit):
            self._end()
            self._stack.clear_ray_files(keep_logs=False)
            return code
        except BaseException as error:
            self._end()
            self._stack.clear_ray_files(keep_logs=True)
            if isinstance(error, ServingError):
                error.args = (f"{error}; {self._stack.logs_hint()}",)
            raise
        return code

    def _say_ready(self) -> None:
        urls = self._stack.urls
        models = served_models(self._settings)
        texts = [
            f"{'model ' if len(models) == 1 else ''}{model.name}, {_shape(model)} ranks"
            for model in models
        ]
        several = "models " if len(models) > 1 else ""
        self._say(f"READY {urls.rest}/v1 (REST) {urls.grpc} (gRPC) {several}{'; '.join(texts)}")

    def _ask(self) -> None:
        try:
            ask_sample(
                self._stack.urls.rest,
                served_models(self._settings)[0].name,
                self._out,
                access=self._stack.access,
            )
        except ServingError as error:
            # The system continues to serve requests.
            self._say(f"the sample question failed: {error}")

    def _end(self) -> None:
        self._stopping = True
        self._say("stopping")
        began = time.monotonic()
        left = self._stack.stop(hurry=lambda: self._signals > 1)
        if left:
            raise ServingError(f"could not stop these processes: {', '.join(map(str, left))}")
        self._say(f"stopped in {time.monotonic() - began:.1f} s")

    def _say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def _take_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if not self._stopping and self._signals == 1:
            raise StopRequested


def _shape(model: ServedModel) -> str:
    """Return groups and ranks of each pool, e.g. ``2 x 4``."""
    groups = [pool.settings.group for pool in model.pools]
    return " + ".join(f"{group.count} x {group.data_parallel}" for group in groups)


def ask_sample(
    base_url: str, model: str, out: TextIO, timeout: float = 60.0, access: Access = NO_ACCESS
) -> None:
    """Send the sample question; print reasoning (dimmed on a terminal) and answer as they stream.

    Args:
        base_url: Base URL of the router.
        model: Name of the model.
        out: Output stream.
        timeout: Maximum time to wait for the answer, seconds.
        access: Credentials for the router.

    Raises:
        ServingError: The request failed.
    """
    dim, bold, reset = ("\x1b[2m", "\x1b[1m", "\x1b[0m") if out.isatty() else ("", "", "")
    out.write(f"\n{bold}you:{reset} {SAMPLE_QUESTION}\n")
    last = ""
    request = GenerateRequest((Message("user", SAMPLE_QUESTION),), max_tokens=256)
    options = GenerateOptions(model, temperature=0.0, timeout=timeout)
    answer = RestClient(base_url, access).generate(request, options)
    for kind, text in (part for delta in answer for part in delta.parts()):
        if kind != last:
            # Answers begin with the line breaks that follow the reasoning.
            text = text.lstrip()  # noqa: PLW2901
            if not text:
                continue
            out.write(f"{reset}\n" if last else "")
            out.write(f"{dim}reasoning: " if kind == "reasoning" else f"{bold}answer:{reset} ")
            last = kind
        out.write(text)
        out.flush()
    out.write(f"{reset}\n\n" if last else "(no answer)\n\n")
    out.flush()
