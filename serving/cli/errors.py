"""How a command ends when something goes wrong: one clear line, and an exit code.

    0    done
    1    an error that the line on stderr explains
    2    the command line itself is wrong
    130  interrupted (Ctrl-C)

Commands raise ``ServingError`` (or any other exception) and never print errors themselves.
"""

import sys
import traceback
from collections.abc import Callable
from typing import TextIO

import typer

from serving import errors

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_HINTS: dict[type[BaseException], str] = {
    errors.SettingsError: "settings and their defaults: see serving/settings.py; "
    "flags: moe-serving COMMAND --help",
    errors.NotReady: "moe-serving status shows what runs; make run (or moe-serving up) starts it",
    errors.GroupLost: "moe-serving status shows the groups; the request can be sent again",
    errors.Overloaded: "try again in a moment",
    errors.Unauthenticated: "give a key with --api-key or MOE_SERVING_API_KEY; "
    "moe-serving keys new makes one",
    errors.PermissionDenied: "moe-serving keys list shows the keys and their roles",
    errors.GroupNotFound: "moe-serving status shows the groups",
    errors.PlacementError: "moe-serving doctor shows what this machine has room for",
    errors.LinkRefused: "run the same version and the same model on both sides",
    errors.EngineError: "moe-serving doctor checks this machine; --verbose shows the traceback",
    errors.ModelNotFound: "the served models are listed at /v1/models",
}


def hint_of(error: BaseException) -> str | None:
    """Return what the user may do next, by the error's nearest class, or ``None``.

    An error whose message says it already has an empty ``hint``.
    """
    if getattr(error, "hint", None) == "":
        return None
    for cls in type(error).__mro__:
        if cls in _HINTS:
            return _HINTS[cls]
    return None


def guarded(run: Callable[[], object], *, verbose: bool, stderr: TextIO | None = None) -> int:
    """Call ``run`` and turn however it ends into an exit code.

    Args:
        run: the command; an ``int`` it returns is the exit code.
        verbose: print tracebacks.
        stderr: where error lines go; ``sys.stderr`` at the time of the call by default.
    """
    out = sys.stderr if stderr is None else stderr
    try:
        result = run()
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except errors.ServingError as error:
        _report(out, str(error) or type(error).__name__, hint_of(error), verbose=verbose)
        return EXIT_ERROR
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: nothing to say, nobody to say it to.
        return EXIT_ERROR
    except Exception as error:  # noqa: BLE001  the last stop before the user
        usage = _usage_message(error)
        if usage is not None:
            _report(out, usage, "moe-serving --help lists the commands", verbose=verbose)
            return EXIT_USAGE
        text = " ".join(str(error).split())
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        hint = None if verbose else "run with --verbose for the traceback"
        _report(out, message, hint, verbose=verbose)
        return EXIT_ERROR
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _usage_message(error: Exception) -> str | None:
    """Return what is wrong with the command line if ``error`` is about that."""
    # typer carries its own copy of click, whose error classes it does not export.
    if isinstance(error, typer.BadParameter) or type(error).__name__ in {
        "UsageError",
        "NoSuchOption",
        "BadOptionUsage",
        "BadArgumentUsage",
        "MissingParameter",
        "NoSuchCommand",
    }:
        formatter = getattr(error, "format_message", None)
        return str(formatter() if formatter is not None else error)
    return None


def _report(out: TextIO, message: str, hint: str | None, *, verbose: bool) -> None:
    """Print the error line, its hint and, if asked for, the traceback being handled."""
    if verbose:
        out.write(traceback.format_exc())
    red, dim, reset = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if out.isatty() else ("", "", "")
    out.write(f"{red}error: {message}{reset}\n")
    if hint is not None:
        out.write(f"{dim}hint:  {hint}{reset}\n")
    out.flush()
