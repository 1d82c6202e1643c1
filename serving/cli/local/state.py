"""What runs on this machine, in a file, so that ``down`` and ``status`` find it.

The folder is ``MOE_SERVING_STATE_DIR``, else ``$XDG_STATE_HOME/moe-serving``, else
``~/.local/state/moe-serving``. A lock that ``up`` holds while it lives says whether the file
is about something that runs; a process id alone would not (ids are used again).
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from serving.errors import ServingError

STATE_DIR_VARIABLE = "MOE_SERVING_STATE_DIR"


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that cannot be mistaken for a later one with the same id."""

    pid: int
    create_time: float
    """Seconds since the Unix epoch, as the kernel counts it (psutil)."""
    name: str


@dataclass(frozen=True, slots=True)
class RunState:
    """One ``up``."""

    up: ProcessRecord
    processes: tuple[ProcessRecord, ...]
    """All that it started, found again from time to time."""
    rest_url: str
    grpc_address: str
    join_address: str
    groups: int
    ranks: int
    model: str
    started_at: float
    """Seconds since the Unix epoch."""
    log_folder: str
    ray_address: str
    ray_token: str
    """Secret of the private Ray; the file is readable by its owner alone."""
    ray_folder: str
    """Session files to delete; empty when the cluster is not ours."""
    dashboard_url: str
    ready: bool
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a newer version, kept as they are."""


class AlreadyRunning(ServingError):
    """Another ``up`` holds the state folder."""


class NotRunning(ServingError):
    """Nothing was started from the state folder, or it is gone."""


def state_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the state file; it need not exist."""
    env = os.environ if environ is None else environ
    own = env.get(STATE_DIR_VARIABLE)
    if own:
        return Path(own)
    base = env.get("XDG_STATE_HOME")
    home = Path(env.get("HOME") or Path.home())
    return (Path(base) if base else home / ".local" / "state") / "moe-serving"


class StateFile:
    """The file, its lock and the folder that holds them and the logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "state.json"
        self.log_folder = folder / "logs"
        self._lock_path = folder / "lock"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock; it is let go when the process ends, however it ends.

        Raises:
            AlreadyRunning: another process holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.log_folder.mkdir(exist_ok=True)
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServingError(
                f"cannot write the state folder {self.folder}: {error.strerror}; "
                f"set {STATE_DIR_VARIABLE} to another one"
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyRunning(self._running_message()) from error
            yield
        finally:
            os.close(descriptor)

    def held(self) -> bool:
        """Return whether an ``up`` lives."""
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def read(self) -> RunState | None:
        """Return the last state that was written, or ``None``.

        Raises:
            ServingError: the file cannot be understood.
        """
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return None
        try:
            return decode(text)
        except (ValueError, TypeError, KeyError) as error:
            raise ServingError(
                f"the state file {self.path} cannot be read ({error}); delete it if nothing runs"
            ) from error

    def write(self, state: RunState) -> None:
        """Replace the file in one step."""
        part = self.path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(encode(state))
        part.replace(self.path)

    def remove(self) -> None:
        """Delete the file; the folder, its lock and its logs stay."""
        self.path.unlink(missing_ok=True)

    def _running_message(self) -> str:
        state = None
        with suppress(ServingError):
            state = self.read()
        where = "" if state is None else f" at {state.rest_url} (process {state.up.pid})"
        return f"moe-serving is already up{where}; moe-serving down stops it"


def encode(state: RunState) -> str:
    """Return ``state`` as JSON text."""
    fields = asdict(state)
    extra = fields.pop("extra")
    return json.dumps({**extra, **fields}, indent=2, sort_keys=True) + "\n"


def decode(text: str) -> RunState:
    """Return the state in JSON ``text``.

    Raises:
        ValueError, TypeError, KeyError: it is not one.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError("not a JSON object")
    known = {name: fields.pop(name) for name in RunState.__slots__ if name in fields}
    known["up"] = ProcessRecord(**known["up"])
    known["processes"] = tuple(ProcessRecord(**item) for item in known["processes"])
    return RunState(**known, extra=fields)


def with_processes(state: RunState, processes: tuple[ProcessRecord, ...]) -> RunState:
    """Return ``state`` with its processes and those of ``processes`` that are new to it."""
    merged = {(item.pid, item.create_time): item for item in (*state.processes, *processes)}
    return replace(state, processes=tuple(merged.values()))
