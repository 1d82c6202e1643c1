"""The state file: processes and addresses of a local ``up``, for ``down`` and ``status``.

The folder is ``MOE_SERVING_STATE_DIR`` if set, otherwise ``$XDG_STATE_HOME/moe-serving`` or, by
default, ``~/.local/state/moe-serving``. ``up`` holds a lock while it is alive, which shows whether
the file is current; a process id alone would not, because ids are reused.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from serving.engine.processes import ProcessRecord
from serving.errors import ServingError

STATE_DIR_VARIABLE = "MOE_SERVING_STATE_DIR"


@dataclass(frozen=True, slots=True)
class RunState:
    """One run of ``up``."""

    up: ProcessRecord
    processes: tuple[ProcessRecord, ...]
    """All descendants of ``up``, updated every second."""
    rest_url: str
    grpc_address: str
    join_address: str
    groups: int
    ranks: int
    model: str
    started_at: float
    """Start time of the run, seconds since the Unix epoch."""
    log_folder: str
    ray_address: str
    ray_token: str
    """Secret of the private Ray; the file is readable by its owner only."""
    ray_folder: str
    """Folder of Ray's session files, to delete afterwards; empty before Ray has started."""
    dashboard_url: str
    ready: bool
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a newer version, kept unchanged."""


class AlreadyRunning(ServingError):
    """Another ``up`` holds the lock of the state folder."""


class NotRunning(ServingError):
    """No ``up`` of the state folder is running."""


def state_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the state file, which may not exist yet.

    Args:
        environ: Environment variables; by default those of this process.
    """
    env = os.environ if environ is None else environ
    own = env.get(STATE_DIR_VARIABLE)
    if own:
        return Path(own)
    base = env.get("XDG_STATE_HOME")
    home = Path(env.get("HOME") or Path.home())
    return (Path(base) if base else home / ".local" / "state") / "moe-serving"


class StateFile:
    """The file, its lock, and the folder that holds both and the logs."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which :meth:`hold` creates."""
        self.folder = folder
        self.path = folder / "state.json"
        self.log_folder = folder / "logs"
        self._lock_path = folder / "lock"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock within the context; the kernel releases it when the process ends.

        Raises:
            AlreadyRunning: Another process holds the lock.
            ServingError: The folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.log_folder.mkdir(exist_ok=True)
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServingError(
                f"cannot write the state folder {self.folder}: {error.strerror}; "
                f"set {STATE_DIR_VARIABLE} to another folder"
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
        """Return whether an ``up`` holds the lock, i.e. is alive."""
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
        """Return the state in the file, or ``None`` if there is no file.

        Raises:
            ServingError: The file cannot be read or decoded.
        """
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return None
        try:
            return decode(text)
        except (ValueError, TypeError, KeyError) as error:
            raise ServingError(
                f"cannot read the state file {self.path} ({error}); delete it if nothing is running"
            ) from error

    def write(self, state: RunState) -> None:
        """Replace the file atomically."""
        part = self.path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(encode(state))
        part.replace(self.path)

    def remove(self) -> None:
        """Delete the file, but not the folder, the lock or the logs."""
        self.path.unlink(missing_ok=True)

    def _running_message(self) -> str:
        state = None
        with suppress(ServingError):
            state = self.read()
        where = "" if state is None else f" at {state.rest_url} (process {state.up.pid})"
        return f"moe-serving is already running{where}; moe-serving down stops it"


def encode(state: RunState) -> str:
    """Return ``state`` as JSON text."""
    fields = asdict(state)
    extra = fields.pop("extra")
    return json.dumps({**extra, **fields}, indent=2, sort_keys=True) + "\n"


def decode(text: str) -> RunState:
    """Return the state in JSON ``text``.

    Raises:
        ValueError, TypeError, KeyError: The text is not a state.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError("not a JSON object")
    known = {name: fields.pop(name) for name in RunState.__slots__ if name in fields}
    known["up"] = ProcessRecord(**known["up"])
    known["processes"] = tuple(ProcessRecord(**item) for item in known["processes"])
    return RunState(**known, extra=fields)


def with_processes(state: RunState, processes: tuple[ProcessRecord, ...]) -> RunState:
    """Return ``state`` with ``processes`` added; new records replace equal ones."""
    merged = {(item.pid, item.create_time): item for item in (*state.processes, *processes)}
    return replace(state, processes=tuple(merged.values()))
