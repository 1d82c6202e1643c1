"""``moe-serving up``: the whole system on this machine, in the foreground or not."""

import signal
import sys
import time
from types import FrameType
from typing import Annotated, TextIO

import typer

from serving.cli.local import background, ports
from serving.cli.local.local_secrets import with_local_secrets
from serving.cli.local.progress import make_progress
from serving.cli.local.sample import ask_sample
from serving.cli.local.state import StateFile, state_folder
from serving.cli.options import (
    ConfigOption,
    GroupsOption,
    GrpcPortOption,
    InsecureOption,
    JoinPortOption,
    ModelOption,
    PortOption,
    RanksOption,
    SetOption,
    SpeculativeOption,
    settings_from,
)
from serving.clock import SystemClock
from serving.edge.auth.exposure import require_guarded
from serving.edge.auth.security import Security
from serving.errors import ServingError
from serving.settings import Settings


def up_command(
    config: ConfigOption = None,
    sets: SetOption = None,
    groups: GroupsOption = None,
    ranks: RanksOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    join_port: JoinPortOption = None,
    speculative: SpeculativeOption = None,
    model: ModelOption = None,
    insecure: InsecureOption = None,
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when ready; down stops it.")
    ] = False,
    sample: Annotated[bool, typer.Option(help="Ask a sample question when ready.")] = True,
) -> int:
    """Start a router and groups of expert-parallel ranks on this machine.

    Shows what is starting, prints a line beginning READY with the URLs, asks a sample
    question, then stays in the foreground. Ctrl-C stops every process; a second Ctrl-C does
    so without letting requests finish. Port 0 takes a free one.
    """
    settings = settings_from(
        config, sets, groups=groups, ranks=ranks, port=port, grpc_port=grpc_port,
        join_port=join_port, speculative=speculative, model=model, insecure=insecure,
    )  # fmt: skip
    settings = ports.with_chosen_ports(settings)
    state = StateFile(state_folder())
    if detach:
        return background.up_in_background(settings, state, sample=sample)
    with state.hold():
        background.clean_up_after_crash(state)
        settings = with_local_secrets(settings, state.folder)
        require_guarded(settings)
        # The router loads them again: a broken file should be known before Ray is started.
        Security.load(settings.security, SystemClock())
        ports.require_free(settings)
        return Foreground(settings, state, sys.stdout).run(sample=sample)


class StopAsked(BaseException):
    """SIGINT or SIGTERM came."""


class Foreground:
    """``up`` as the user sees it."""

    def __init__(self, settings: Settings, state: StateFile, out: TextIO) -> None:
        # Ray takes seconds to import, and errors in settings come before that.
        from serving.cli.local.stack import Stack

        self._settings = settings
        self._out = out
        self._progress = make_progress(sys.stderr)
        self._stack = Stack(settings, state, self._progress, SystemClock())
        self._signals = 0
        self._stopping = False

    def run(self, *, sample: bool) -> int:
        """Start, serve until asked to stop, stop; return the exit code.

        Raises:
            ServingError: something failed; everything has been stopped before.
        """
        self._take_signals()
        code = 130
        try:
            with self._progress:
                self._stack.start(after_ray=self._take_signals)
            self._say_ready()
            code = 0
            # Without groups (they come later, scaled up) there is nobody to ask.
            if sample and self._settings.group.count:
                self._ask()
            if self._out.isatty():
                self._say("Ctrl-C stops everything")
            self._stack.mark_ready()
            self._stack.watch(lambda text: self._say(f"{time.strftime('%H:%M:%S')} {text}"))
        except (StopAsked, KeyboardInterrupt, SystemExit):
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
        group = self._settings.group
        self._say(
            f"READY {urls.rest}/v1 (REST) {urls.grpc} (gRPC) model {self._settings.model.name}, "
            f"{group.count} x {group.data_parallel} ranks"
        )

    def _ask(self) -> None:
        try:
            ask_sample(
                self._stack.urls.rest,
                self._settings.model.name,
                self._out,
                access=self._stack.access,
            )
        except ServingError as error:
            # It serves all the same: a sample is no reason to take it down.
            self._say(f"the sample question failed: {error}")

    def _end(self) -> None:
        self._stopping = True
        self._say("stopping")
        began = time.monotonic()
        left = self._stack.stop(hurry=lambda: self._signals > 1)
        if left:
            raise ServingError(f"could not end these processes: {', '.join(map(str, left))}")
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
            raise StopAsked
