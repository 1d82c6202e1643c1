"""Error reports of commands: one line on stderr, and an exit code.

    0    done
    1    failed; the line on stderr has the reason
    2    invalid command line
    130  interrupted (Ctrl-C)

Commands raise ``ServingError``, or any other exception, and print no errors themselves.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import typer
from pydantic import ValidationError

from serving import errors
from serving.flags.messages import FlagError, refusal, unknown

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_HINTS: dict[type[BaseException], str] = {
    errors.SettingsError: "settings are listed in deploy/docs/reference/settings.md, flags by "
    "moe-serving COMMAND --help",
    errors.NotReady: "moe-serving status shows what is running; make run (or moe-serving up) "
    "starts a router",
    errors.GroupLost: "moe-serving status shows the groups; the request can be retried",
    errors.Overloaded: "try again in a moment",
    errors.Unauthenticated: "set an API key with --api-key or MOE_SERVING_API_KEY; "
    "moe-serving keys new creates one",
    errors.PermissionDenied: "moe-serving keys list shows the keys and their roles",
    errors.GroupNotFound: "moe-serving status shows the groups",
    errors.PlacementError: "moe-serving doctor checks the resources of this machine",
    errors.LinkRefused: "run the same version and the same model on both sides",
    errors.EngineError: "moe-serving doctor checks this machine; --verbose shows the traceback",
    errors.ModelNotFound: "the served models are listed at /v1/models",
}


def hint_of(error: BaseException) -> str | None:
    """Return advice for the user by the error's nearest class, or None if there is none.

    Errors whose message already contains the advice have an empty ``hint``.
    """
    if getattr(error, "hint", None) == "":
        return None
    for cls in type(error).__mro__:
        if cls in _HINTS:
            return _HINTS[cls]
    return None


def guarded(run: Callable[[], object], *, verbose: bool, stderr: TextIO | None = None) -> int:
    """Call ``run``; return an exit code for its result or its exception.

    Args:
        run: The command; an int that it returns is the exit code.
        verbose: Whether to print tracebacks.
        stderr: Receives the error lines. None means ``sys.stderr``.
    """
    out = sys.stderr if stderr is None else stderr
    try:
        result = run()
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except FlagError as error:
        _report(out, str(error), "--help lists the flags and their values", verbose=verbose)
        return EXIT_USAGE
    except errors.ServingError as error:
        _report(out, str(error) or type(error).__name__, hint_of(error), verbose=verbose)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of the pipe (head, less) has ended: the error cannot be printed.
        return EXIT_ERROR
    except Exception as error:  # noqa: BLE001  users see no traceback
        usage = _usage_message(error)
        if usage is not None:
            _report(out, usage, _usage_hint(error), verbose=verbose)
            return EXIT_USAGE
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in _PACKAGES:
            message = f"this command needs {package}, which is not installed"
            _report(out, message, _PACKAGES[package], verbose=verbose)
            return EXIT_ERROR
        text = " ".join(str(error).split())
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        hint = None if verbose else "run with --verbose for the traceback"
        _report(out, message, hint, verbose=verbose)
        return EXIT_ERROR
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


_ENGINE = "for CPUs run make in a checkout; for GPUs: pip install 'moe-serving[gpu]'"
_LEDGER = "pip install 'moe-serving[ledger]'"
_PACKAGES = {
    "httpx": "pip install 'moe-serving[autoscaler]'",
    "kubernetes": "pip install 'moe-serving[autoscaler]'",
    "alembic": _LEDGER,
    "psycopg": _LEDGER,
    "sqlalchemy": _LEDGER,
    "boto3": "pip install 'moe-serving[s3]'",
    "aiohttp": "pip install 'moe-serving[autoscaler,load]'",
    "numpy": "pip install 'moe-serving[load]'",
    "ray": _ENGINE,
    "torch": _ENGINE,
    "vllm": _ENGINE,
}
"""How to install the packages that are extras in pyproject.toml."""


_USAGE = {
    "UsageError",
    "NoSuchOption",
    "BadOptionUsage",
    "BadArgumentUsage",
    "MissingParameter",
    "NoSuchCommand",
}
"""Names of typer's errors; typer bundles a copy of click and does not export its errors."""
_WORDS = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be greater than {gt}",
}
"""Descriptions of accepted values, by pydantic's error types."""


def _usage_message(error: Exception) -> str | None:
    """Return the message for an invalid command line; None for other errors."""
    kind = type(error).__name__
    if not isinstance(error, typer.BadParameter) and kind not in _USAGE:
        return None
    if kind == "NoSuchOption":
        return unknown(getattr(error, "option_name", ""), _flags(error))
    if kind == "BadOptionUsage":
        return f"{getattr(error, 'option_name', 'a flag')} needs a value"
    if kind == "MissingParameter":
        return f"{_flag(error)} is missing"
    if isinstance(error, typer.BadParameter) and (found := _refused(error)) is not None:
        return found
    formatter = getattr(error, "format_message", None)
    return " ".join(str(formatter() if formatter is not None else error).split())


def _refused(error: typer.BadParameter) -> str | None:
    """Return the message for a value that its type rejects: flag, value, accepted values."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError) or error.param is None:
        return None
    found = cause.errors()[0]
    return refusal(_flag(error), str(found["input"]), accepted(found))


def accepted(found: Mapping[str, Any]) -> str:
    """Return a description of the accepted values, from a pydantic error about a value."""
    words = _WORDS.get(found["type"], "").format(**found.get("ctx", {}))
    return words or str(found["msg"]).removeprefix("Value error, ").rstrip(".")


def _flag(error: Exception) -> str:
    """Return the name of the flag or argument that ``error`` is about."""
    param = getattr(error, "param", None)
    names = [name for name in getattr(param, "opts", ()) if name.startswith("-")]
    name = getattr(param, "metavar", None) or getattr(param, "name", None)
    return max(names, key=len) if names else str(name or "a value")


def _flags(error: Exception) -> list[str]:
    """Return the flags of the command that ``error`` is about."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    names = list(getattr(context, "help_option_names", ()))
    for param in getattr(command, "params", ()):
        names += (*param.opts, *param.secondary_opts)
    return [name for name in names if name.startswith("--")]


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", None) or "moe-serving"
    lists = "commands" if getattr(context, "parent", None) is None else "flags"
    if getattr(getattr(context, "command", None), "commands", None):
        lists = "commands"
    return f"{path} --help lists the {lists}"


def _report(out: TextIO, message: str, hint: str | None, *, verbose: bool) -> None:
    """Print the error line, its hint, and the current traceback if ``verbose``."""
    if verbose:
        out.write(traceback.format_exc())
    red, dim, reset = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if out.isatty() else ("", "", "")
    out.write(f"{red}error: {message}{reset}\n")
    if hint is not None:
        out.write(f"{dim}hint:  {hint}{reset}\n")
    out.flush()
