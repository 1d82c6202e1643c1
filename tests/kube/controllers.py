"""Runs fake controllers: a pass over all of them after each change, until nothing changes.

A controller is a function of the server that reads objects (``server.view``, uncopied) and writes
them through ``server.api``, with the checks of HTTP requests; a conflict or any other
refusal is retried in the next pass. ``settle`` runs them in the caller's thread, so that a test
sees the effect of its change; ``running`` runs them in a thread while Helm and other processes run.
They do not use HTTP: stopping the server does not stop them; leaving ``running`` does.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.kube.errors import ApiError
from tests.kube.server import KubeServer
from tests.support.waiting import PATIENCE

Controller = Callable[[KubeServer], None]
_QUIET = 0.05
_MOST = 60
"""Number of passes after which controllers are considered to be in an endless conflict."""


def settle(server: KubeServer, *controllers: Controller) -> None:
    """Run controllers until a pass changes nothing.

    Raises:
        AssertionError: The changes do not end.
    """
    for _ in range(_MOST):
        with server.controlling:
            before = server.store.revision
            for controller in controllers:
                try:
                    controller(server)
                except ApiError as error:
                    # A conflict is retried in the next pass; any other error is a bug in the
                    # controller's.
                    if error.code not in {404, 409}:
                        raise
            if server.store.revision == before:
                return
    raise AssertionError(f"{len(controllers)} controllers do not come to rest in {_MOST} passes")


@contextmanager
def running(server: KubeServer, *controllers: Controller) -> Iterator[None]:
    """Run controllers in a thread whenever something changes."""
    changed, stop, faults = threading.Event(), threading.Event(), []

    def work() -> None:
        try:
            while not stop.is_set():
                changed.wait()
                stop.wait(_QUIET)  # one pass for a burst of changes
                changed.clear()
                settle(server, *controllers)
        except Exception as error:  # noqa: BLE001  raised in the test's thread
            faults.append(error)

    changed.set()
    server.store.listeners.append(changed.set)
    thread = threading.Thread(target=work, name="controllers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        changed.set()
        thread.join(PATIENCE)
        server.store.listeners.remove(changed.set)
    assert not thread.is_alive(), "the controllers do not end"
    if faults:
        raise faults[0]
