"""The framework of a client's Python script: features, and results for the runner.

A script decorates functions with the features they try, and ends with ``main()``::

    @feature("chat.stream")
    def streamed():
        assert ...

    main(cannot={"messages.*": "supports only OpenAI's API"})

The runner passes the router's address in environment variables, and reads one line of JSON for each
feature from a file descriptor. A function may be a coroutine, and may stand for several features.
"""

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

URL = os.environ["CLIENT_URL"]
"""REST address, without /v1 and a trailing slash."""
GRPC = os.environ["CLIENT_GRPC"]
"""Address of the server, host:port."""
MODEL = os.environ["CLIENT_MODEL"]
KEY = os.environ.get("CLIENT_KEY") or "none"
NARROW_KEY = os.environ.get("CLIENT_NARROW_KEY", "")
"""Key of this client with one concurrent request; empty if the runner has none."""
QUESTION = "What is 17+25?"
LONG = "Count from 1 to 500."
"""A prompt whose answer, with ``ignore_eos``, has max_tokens tokens."""

ADMIN_KEY = os.environ.get("CLIENT_ADMIN_KEY", "")
"""Key with role admin; empty if the runner has none."""

_features: dict[str, tuple[Callable[[], Any], str]] = {}


class NotHere(Exception):
    """The feature is not available on this server; the message is the reason."""


def feature(*names: str, fails: str = "") -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function that tries features.

    Args:
        names: full names as in features.py.
        fails: why the features cannot work with this client. The function must then fail: once it
            passes, the reason must be removed.
    """

    def add(function: Callable[[], Any]) -> Callable[[], Any]:
        for name in names:
            assert name not in _features, name
            _features[name] = (function, fails)
        return function

    return add


def narrow_key() -> str:
    """Return the key that admits one request at a time.

    Raises:
        NotHere: The router was not started by the runner.
    """
    if not NARROW_KEY:
        raise NotHere("needs a key that admits one request at a time (no --narrow-key was given)")
    return NARROW_KEY


def admin_key() -> str:
    """Return the key with role admin.

    Raises:
        NotHere: The router was not started by the runner.
    """
    if not ADMIN_KEY:
        raise NotHere("needs a key with role admin (no --admin-key was given)")
    return ADMIN_KEY


def some_key() -> str:
    """Return the client's key, if keys are required.

    Raises:
        NotHere: The router requires no keys.
    """
    if KEY == "none":
        raise NotHere("this router asks for no keys")
    return KEY


def main(packages: tuple[str, ...], cannot: Mapping[str, str]) -> None:
    """Try all features and report each to the runner.

    Args:
        packages: whose versions are reported.
        cannot: why features are not tried; ``group.*`` stands for those of a group that the script
            does not try.
    """
    with os.fdopen(int(os.environ.get("CLIENT_RESULTS_FD", "1")), "w", buffering=1) as results:

        def say(**line: Any) -> None:
            results.write(json.dumps(line) + "\n")

        say(versions={package: version(package) for package in packages})
        for name, reason in cannot.items():
            say(cannot=name, reason=reason)
        only = set(filter(None, os.environ.get("CLIENT_FEATURES", "").split(",")))
        done: dict[Callable[[], Any], dict[str, str]] = {}
        for name, (function, fails) in _features.items():
            if not only or name in only:
                if function not in done:
                    done[function] = _outcome(function, fails)
                say(feature=name, **done[function])
    # Threads and open connections of libraries must not delay the exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _outcome(function: Callable[[], Any], fails: str) -> dict[str, str]:
    try:
        if inspect.iscoroutinefunction(function):
            asyncio.run(function())
        else:
            function()
    except NotHere as reason:
        return {"status": "reason", "reason": str(reason)}
    except BaseException as error:  # noqa: BLE001  whatever it is, the next feature is tried
        if fails:
            return {"status": "reason", "reason": fails}
        trace = "".join(traceback.format_exception(error))
        # A bare assertion shows only its line.
        words = str(error) or (traceback.extract_tb(error.__traceback__)[-1].line or "")
        return {"status": "failed", "reason": f"{type(error).__name__}: {words}", "trace": trace}
    if fails:
        return {"status": "failed", "reason": f"works now, so this is wrong: {fails}"}
    return {"status": "passed"}
