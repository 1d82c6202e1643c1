"""How each command of a page is tried: most run as they stand, the others are listed here.

An unknown program is a failure, so that no command escapes.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.docs.shell import programs


class How(StrEnum):
    """What is done with a command."""

    RUN = "run"
    """Run as it stands."""
    FLAGS = "flags"
    """Its programs are asked for help with its own flags: an unknown flag fails."""
    WATCH = "watch"
    """Run until it has printed something: it does not end by itself."""
    FORWARD = "forward"
    """A real router is started where it would forward to."""
    EXEC = "exec"
    """The object must exist; the command in the pod is asked for help with its own flags."""
    PARSED = "parsed"
    """Read by bash alone."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done with commands that match, and why they do not just run."""

    pattern: str
    how: How
    reason: str


RULES = (
    Rule(r"^kind ", How.PARSED, "kind needs a container engine"),
    Rule(r"^docker ", How.PARSED, "the same"),
    Rule(r"^make images\b", How.PARSED, "images need a container engine"),
    Rule(r"^helm repo ", How.FLAGS, "KubeRay's charts are on the network"),
    Rule(r"^helm (install|upgrade) \S+ kuberay/", How.FLAGS, "the same"),
    Rule(r"^kubectl .*--watch\b", How.WATCH, "it ends with Ctrl-C"),
    Rule(r"^kubectl (--namespace \S+ )?port-forward ", How.FORWARD, "no kubelet"),
    Rule(r"^kubectl (--namespace \S+ )?exec ", How.EXEC, "no kubelet"),
    Rule(r"^kubectl (--namespace \S+ )?logs ", How.FLAGS, "no kubelet"),
    Rule(r"\bmoe-serving (up|autoscaler|router)\b", How.FLAGS, "it runs until it is stopped"),
    Rule(r"^make \S", How.PARSED, "a part of the project's own tests"),
    Rule(r"^prometheus ", How.PARSED, "it runs until it is stopped"),
)

KNOWN = frozenset(
    {
        "kubectl", "helm", "moe-serving", "openssl", "openssl.sh", "kind", "docker", "make",
        "curl", "prometheus",
        "echo", "export", "printf", "cat", "head", "tail", "grep", "sed", "sort", "base64",
        "umask", "rm", "mkdir", "unset", "diff", "true",
    }
)  # fmt: skip
"""Programs that a page may use."""
HELPFUL = frozenset({"kubectl", "helm", "moe-serving"})
"""Those that check their flags when ``--help`` is the last of them."""


def rule_of(command: str) -> Rule:
    """Return the first rule that a command matches.

    Raises:
        LookupError: it runs a program that no page may use.
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
