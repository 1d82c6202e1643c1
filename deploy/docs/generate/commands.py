"""The reference of the commands, from the same objects that print ``--help``."""

import json
import re
from collections.abc import Iterator
from typing import Any

import typer

from deploy.docs.generate.markdown import prose, table
from loadtest.arguments import application
from serving.cli.main import COMMANDS, build_app

_HEAD = """\
# Commands

`--help` after a command prints the same texts.
`--verbose`, anywhere on the line, shows the traceback of an error.
Exit code 0 is success, 1 an error, 2 a wrong command line, 130 an interruption with Ctrl-C;
where a command has others, its section lists them.

This page is generated from the command line's own definitions.
"""
_PROGRAMS = ("moe-serving ", "kubectl ", "helm ", "python ", "echo ")
"""Prefixes of paragraphs that are commands."""


def page() -> str:
    """Return the page."""
    overview = table(
        ("command", "summary"),
        [(f"[{item.name}](#{item.name})", item.summary) for item in COMMANDS],
    )
    sections = []
    for item in COMMANDS:
        if item.own_options:
            command: Any = typer.main.get_command(application())
        else:
            app: Any = typer.main.get_command(build_app(item.name))
            command = app.commands[item.name]
        sections.append("".join(_section(command, (item.name,))))
    return "".join((_HEAD, "\n", overview, *sections))


def _section(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    yield f"\n{'#' * (len(path) + 1)} {' '.join(path)}\n\n"
    yield _text(command.help or "")
    inner = getattr(command, "commands", None)
    if inner is None:
        yield f"\n    usage: {' '.join(_usage(command, path))}\n"
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [
        each
        for each in command.params
        if each.param_type_name == "option" and not each.hidden and each.name != "help"
    ]
    if arguments:
        rows = [(f"`{_metavar(each)}`", _help(each)) for each in arguments]
        yield "\n" + table(("argument", "description"), rows)
    if options:
        rows = [(_flags(each), _help(each)) for each in options]
        yield "\n" + table(("flag", "description"), rows)
    for name, item in (inner or {}).items():
        yield from _section(item, (*path, name))
    if command.epilog:
        yield "\n" + _text(command.epilog)


def _text(help_text: str) -> str:
    """Return a help text with its paragraphs; commands become code blocks."""
    parts = []
    for paragraph in re.split(r"\n\s*\n|\f", help_text.strip()):
        lines = [line.strip().removesuffix("\\").strip() for line in paragraph.splitlines()]
        if lines[0].startswith(_PROGRAMS):
            parts.append(f"    $ {' '.join(lines)}\n")
        elif paragraph.strip():
            parts.append(prose(_plain(paragraph)) + "\n")
    return "\n".join(parts)


def _plain(text: str) -> str:
    """Return a text without the escapes of Rich's markup."""
    return text.replace("\\[", "[")


def _usage(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    yield "moe-serving"
    yield from path
    if any(each.param_type_name == "option" for each in command.params):
        yield "[OPTIONS]"
    for each in command.params:
        if each.param_type_name == "argument":
            yield _metavar(each) if each.required else f"[{_metavar(each)}]"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" `{option.metavar or _kind(option)}`"
    return names + value


def _kind(option: Any) -> str:
    kind = option.type_descriptor.annotation
    values = [str(each.value) for each in kind] if hasattr(kind, "__members__") else []
    return "|".join(values) or {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")


def _help(parameter: Any) -> str:
    text = prose(_plain(parameter.help or ""))
    notes = []
    if parameter.envvar:
        notes.append(f"environment: `{parameter.envvar}`")
    default = parameter.default
    if "[default:" not in text and default not in (None, False, ()) and not callable(default):
        shown = default if isinstance(default, str) else json.dumps(default, default=str)
        notes.append(f"default: `{shown}`")
    if parameter.required and parameter.param_type_name == "option":
        notes.append("required")
    text = re.sub(r"\[(default: [^\]]*)\]", r"(\1)", text)
    return f"{text} ({'; '.join(notes)})" if notes else text
