"""Runs the commands of a page in a shell that uses the fake cluster."""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.cli.main import main
from tests.docs import cluster
from tests.docs.forwarding import Forwarded, forward
from tests.docs.pages import Command
from tests.docs.rules import How, rule_of, with_help
from tests.docs.shell import Done, Shell, is_shell, simple_commands
from tests.kube.server import KubeServer

_END = "\\001"
"""End of a word in the output of ``printf``."""
_FORWARD = re.compile(r"(?:service|svc)/(?P<service>[\w-]+) (?P<here>\d+):(?P<there>\d+)")
_SPACE = re.compile(r"--namespace[ =](\S+)")
_FAMILY = re.compile(r"^ *(Usage: )?\S.*(\[command\]| SUBCOMMAND| COMMAND \[ARGS\])", re.MULTILINE)
"""Usage line of a program that has subcommands."""
_EXEC = re.compile(
    r"kubectl (?:--namespace (?P<space>\S+) )?exec (?P<outer>.*?) -- (?P<inner>.*)", re.DOTALL
)


class Failed(AssertionError):
    """A command of a page fails."""


class Typist:
    """Runs commands in order, in one shell and one cluster."""

    def __init__(
        self, server: KubeServer, shell: Shell, folder: Path, *, runs: bool = True
    ) -> None:
        """Run commands against ``server``; without ``runs``, check only their flags."""
        self.shell = shell
        self._runs = runs
        self.done: list[tuple[Command, How, str]] = []
        """Each command, how it was tested, and its output."""
        self._server = server
        self._folder = folder
        self._forwarded: dict[int, Forwarded] = {}

    def type(self, command: Command) -> None:
        """Test a command.

        Raises:
            Failed: The command fails, or no rule matches it.
        """
        try:
            how, output = self._try(command)
        except (LookupError, TimeoutError) as error:
            raise Failed(f"{command}\n{error}") from error
        self.done.append((command, how, output))

    def close(self) -> None:
        """Stop the shell and the forwarded routers."""
        for forwarded in self._forwarded.values():
            forwarded.close()
        self.shell.close()

    def _try(self, command: Command) -> tuple[How, str]:
        if (problem := is_shell(command.text)) is not None:
            raise Failed(f"{command}\n{problem}")
        how = rule_of(command.text).how
        if how is not How.PARSED and not (command.typed and self._runs):
            how = How.FLAGS
        text = self._here(command.text)
        if how is How.RUN:
            return how, _good(command, self.shell.run(text)).output
        if how is How.WATCH:
            return how, self._watch(command, text)
        if how is How.FORWARD:
            return how, self._forward(command)
        if how is How.EXEC:
            return how, self._exec(command, text)
        if how is How.FLAGS:
            return how, self._flags(command, text)
        return how, ""

    def _watch(self, command: Command, text: str) -> str:
        done = self.shell.first_output(text)
        if done.code or not done.output or done.output.startswith("error:"):
            raise Failed(f"{command}\nended, or printed nothing: {done.output}")
        return done.output

    def _forward(self, command: Command) -> str:
        match = _FORWARD.search(self.shell.run(f'echo "{command.text.rstrip("& ")}"').output)
        if match is None:
            raise Failed(f"{command}\ndoes not name a service and ports")
        here = int(match["here"])
        space = _SPACE.search(command.text)
        if (before := self._forwarded.pop(here, None)) is not None:
            before.close()
        folder = Path(tempfile.mkdtemp(prefix="forward-", dir=self._folder))
        self._forwarded[here] = forward(
            self._server,
            self.namespace if space is None else space[1],
            match["service"],
            int(match["there"]),
            folder,
        )
        return ""

    def _exec(self, command: Command, text: str) -> str:
        found = _EXEC.search(re.sub(r"\\\n", " ", text))
        if found is None:
            raise Failed(f"{command}\nhas no command after --")
        words = self.shell.run(f"echo {found['outer']}").output.split()
        where = f"--namespace {found['space']}" if found["space"] else ""
        named = words[0]
        if "/" not in named:
            named = f"pod/{named}"
        output = _good(command, self.shell.run(f"kubectl get {where} {named}")).output
        self._flags(command, found["inner"])
        return output

    def _flags(self, command: Command, text: str) -> str:
        output = []
        for words in simple_commands(text):
            match = with_help(words)
            if match is not None:
                output.append(_good(command, self._help(match)).output)
                if _FAMILY.search(output[-1]):
                    raise Failed(f"{command}\nis not a command of {words[0]}")
        return "\n".join(output)

    def _help(self, words: list[str]) -> Done:
        """Run a command with ``--help``; ours in this process, because a new one takes longer."""
        if words[0] != "moe-serving":
            return self.shell.run(" ".join(words))
        expanded = self.shell.run(f"printf '%s{_END}' {' '.join(words[1:])}").output
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(expanded.split("\1")[:-1])
        return Done(code, said.getvalue().strip())

    def _here(self, text: str) -> str:
        """Return a command with forwarded ports replaced by the routers' ports."""
        for port, forwarded in self._forwarded.items():
            text = re.sub(rf"\b{port}\b", str(forwarded.rest), text)
        return text

    @property
    def namespace(self) -> str:
        """The namespace of kubectl's current context."""
        where = "jsonpath={.contexts[0].context.namespace}"
        return self.shell.run(f"kubectl config view --minify -o '{where}'").output or "default"


def _good(command: Command, done: Done) -> Done:
    if done.code:
        raise Failed(f"{command}\nexited with {done.code}:\n{done.output}")
    return done


@contextmanager
def typist(server: KubeServer, folder: Path, *, runs: bool = True) -> Iterator[Typist]:
    """Create a working folder, and start a shell in it."""
    place = folder / "place"
    place.mkdir()
    shell = Shell(place, cluster.workplace(place, server))
    made = Typist(server, shell, folder, runs=runs)
    try:
        made.shell.run("set -o pipefail")
        yield made
    finally:
        made.close()
