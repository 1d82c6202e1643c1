"""How each command of a page is tested: most run as written, the exceptions are listed here.

A command with an unknown program fails, so that every command is tested.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.docs.shell import programs


class How(StrEnum):
    """How a command is tested."""

    RUN = "run"
    """Run as written."""
    FLAGS = "flags"
    """Its programs run with its flags and ``--help``: an unknown flag fails."""
    WATCH = "watch"
    """Run until it prints something, because it does not exit."""
    FORWARD = "forward"
    """A real router is started on the local port that the command forwards."""
    EXEC = "exec"
    """The object must exist; the command in the pod runs with its flags and ``--help``."""
    PARSED = "parsed"
    """Only parsed by bash."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How matching commands are tested, and why they do not run as written."""

    pattern: str
    how: How
    reason: str


RULES = (
    Rule(r"^kind ", How.PARSED, "kind needs a container engine"),
    Rule(r"^docker ", How.PARSED, "as above"),
    Rule(r"^make images\b", How.PARSED, "images need a container engine"),
    Rule(r"^helm repo ", How.FLAGS, "needs network access to KubeRay's charts"),
    Rule(r"^helm (install|upgrade) \S+ kuberay/", How.FLAGS, "as above"),
    Rule(r"^kubectl .*--watch\b", How.WATCH, "runs until Ctrl-C"),
    Rule(r"^kubectl (--namespace \S+ )?port-forward ", How.FORWARD, "no kubelet"),
    Rule(r"^kubectl (--namespace \S+ )?exec ", How.EXEC, "no kubelet"),
    Rule(r"^kubectl (--namespace \S+ )?logs ", How.FLAGS, "no kubelet"),
    Rule(r"\bmoe-serving (up|autoscaler|router)\b", How.FLAGS, "runs until stopped"),
    Rule(r"^make \S", How.PARSED, "runs the project's own tests"),
    Rule(r"^prometheus ", How.PARSED, "runs until stopped"),
    Rule(r"^kill ", How.PARSED, "kills a rank of a system that does not run in this test"),
)

KNOWN = frozenset(
    {
        "kubectl", "helm", "moe-serving", "openssl", "openssl.sh", "kind", "docker", "make",
        "curl", "prometheus",
        "echo", "export", "printf", "cat", "head", "tail", "grep", "sed", "sort", "base64",
        "kill", "umask", "rm", "mkdir", "unset", "diff", "true",
    }
)  # fmt: skip
"""Programs that pages may use."""
HELPFUL = frozenset({"kubectl", "helm", "moe-serving"})
"""Programs that check their flags even if ``--help`` follows."""


def rule_of(command: str) -> Rule:
    """Return the first rule that a command matches.

    Raises:
        LookupError: The command runs a program that pages must not use.
    """
    unknown = sorted({Path(name).name for name in programs(command)} - KNOWN)
    if unknown:
        raise LookupError(f"no rule for {', '.join(unknown)}: {command}")
    text = re.sub(r"^((env )?[A-Za-z_]\w*=\S* )*", "", command.strip())
    for rule in RULES:
        if re.search(rule.pattern, text, re.DOTALL):
            return rule
    return Rule("", How.RUN, "")


def with_help(words: list[str]) -> list[str] | None:
    """Return a command that checks the flags of ``words``; ``None`` if the program cannot."""
    program = Path(words[0]).name
    return [program, *words[1:], "--help"] if program in HELPFUL else None
