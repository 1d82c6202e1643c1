"""A shell that types a page's commands one after the other, and the parsing of commands."""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import PATIENCE

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_REDIRECTION = re.compile(r"\d*(>>|>&|<<<|<<-?|>|<)")
_PREFIXES = {"env", "exec", "nohup"}
_HERE = re.compile(r"(<<-?\s*(['\"]?)(\w+)\2[^\n]*)\n.*?\n\3(\n|$)", re.DOTALL)
_QUOTED = re.compile(
    r"""\\. | '[^']*' | "(?:\\.|\$\((?:[^()]|\([^()]*\))*\)|[^"\\])*" """
    r"""| \$\((?:[^()]|\([^()]*\))*\) | \$\{[^}]*\}""",
    re.VERBOSE | re.DOTALL,
)
_INNER = re.compile(r"\$\(((?:[^()]|\([^()]*\))*)\)", re.DOTALL)


def programs(command: str) -> list[str]:
    """Return the programs that a command line runs, in order, including those in ``$(...)``."""
    return [words[0] for words in simple_commands(command)]


def simple_commands(command: str) -> list[list[str]]:
    """Return the simple commands of a line as words, without assignments and redirections.

    Words keep their quotes; a command in ``$(...)`` follows the one that it is part of.
    """
    text = _HERE.sub(r"\1\n", re.sub(r"\\\n", " ", command))
    found = []
    for words in _split(text):
        kept = list(words)
        while kept and (_ASSIGNMENT.match(kept[0]) or kept[0] in _PREFIXES):
            kept.pop(0)
        if kept:
            found.append(kept)
        for word in words:
            if not word.startswith("'"):
                for inner in _INNER.findall(word):
                    found += simple_commands(inner)
    return found


def _split(text: str) -> list[list[str]]:
    """Return the words of each simple command; a word may contain quotes and ``$(...)``."""
    found: list[list[str]] = [[]]
    word, at, skip = "", 0, False

    def end_of_word() -> None:
        nonlocal word, skip
        if word and not skip:
            found[-1].append(word)
        skip = skip and not word
        word = ""

    while at < len(text):
        if (quoted := _QUOTED.match(text, at)) is not None:
            word, at = word + quoted[0], quoted.end()
        elif text[at] == "#" and not word:
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        elif (sign := _REDIRECTION.match(text, at)) and (not word or text[at] in "<>"):
            end_of_word()
            skip, at = True, sign.end()
        elif text[at] in "|&;()\n":
            if text[at] == "&" and skip and not word:  # 2>&1
                word = "&"
            else:
                end_of_word()
                found.append([])
            at += 1
        elif text[at].isspace():
            end_of_word()
            at += 1
        else:
            word, at = word + text[at], at + 1
    end_of_word()
    return found


def is_shell(command: str) -> str | None:
    """Return why bash rejects a command, or ``None``."""
    done = subprocess.run(
        ["bash", "-n"], input=command, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    return done.stderr if done.returncode else None


@dataclass(frozen=True, slots=True)
class Done:
    """Exit code and output of a command."""

    code: int
    output: str
    """Standard output and standard error together."""


class Shell:
    """One bash process, so that variables persist between commands."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._number = 0

    def run(self, command: str, seconds: float = 400.0) -> Done:
        """Run a command and return its result.

        Raises:
            TimeoutError: The command did not end in time; the shell is killed.
        """
        assert self._process.stdin is not None
        self._number += 1
        mark = f"--done-{self._number}-"
        self._process.stdin.write(f"{command}\nprintf '\\n{mark}%s\\n' $?\n".encode())
        self._process.stdin.flush()
        output = self._read(mark.encode(), time.monotonic() + seconds, command)
        text, _, code = output.decode("utf-8", "replace").rpartition(mark)
        return Done(int(code), text.strip())

    def first_output(self, command: str, seconds: float = 200.0) -> Done:
        """Run a command that does not end until it prints something, then stop it."""
        deadline = int(seconds * 10)
        return self.run(
            f"__out=$(mktemp); {{ {command}; }} >$__out 2>&1 & __pid=$!\n"
            f"for __n in $(seq {deadline}); do\n"
            "  [ -s $__out ] || ! kill -0 $__pid 2>/dev/null && break; sleep 0.1\n"
            "done\n"
            # A command that fails prints the reason first.
            "for __n in 1 2 3 4 5; do kill -0 $__pid 2>/dev/null || break; sleep 0.1; done\n"
            "kill -0 $__pid 2>/dev/null; __runs=$?; cat $__out; rm -f $__out\n"
            "kill $__pid 2>/dev/null; wait $__pid 2>/dev/null; (exit $__runs)",
            seconds + 30,
        )

    def close(self) -> None:
        """End the shell and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _read(self, mark: bytes, deadline: float, command: str) -> bytes:
        assert self._process.stdout is not None
        output = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not (mark in output and output.endswith(b"\n")):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise TimeoutError(f"{command}: did not end; output so far: {output.decode()}")
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    raise EOFError(f"{command}: the shell exited: {output.decode()}")
                output += part
        return output
