"""``moe-serving weights``: bring a model's weights onto a volume once, and wait for them.

A Job fetches to a shared volume, a DaemonSet to a disk of each node; ranks and routers only wait
for the mark. Of several pods that fetch into one folder one does it and the others wait for it. A
fetch that was cut off is resumed; what is there already is not fetched again, and then nothing is
asked of the network. A mark is written only when every large file has the digest that the hub gives
for it.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Protocol

import typer

from serving.cli.ops.folder_lock import locked
from serving.clock import Clock, SystemClock
from serving.errors import EngineError

MARK = ".moe-serving-complete"
"""File in the model's folder with what was fetched (repository@revision)."""
CONFIG_MARK = ".moe-serving-config-complete"
"""The same for a fetch without weights."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
"""What --without-weights leaves out, as the hub matches names."""
POLL_SECONDS = 5.0
_CHUNK = 2**24


class Step(StrEnum):
    """What to do."""

    FETCH = "fetch"
    WAIT = "wait"


class Hub(Protocol):
    """Where weights come from."""

    def digests(self, repository: str, revision: str) -> Mapping[str, str]:
        """Return the SHA-256 (hex) of each large file, by its path in the repository."""
        ...

    def download(
        self, repository: str, revision: str, folder: Path, leave_out: Sequence[str]
    ) -> None:
        """Put all files but those of the patterns into ``folder``, resuming an earlier try."""
        ...


class HuggingFaceHub:
    """The hub; a token for it comes from HF_TOKEN."""

    def digests(self, repository: str, revision: str) -> Mapping[str, str]:
        """Return the SHA-256 of the files that are kept as large ones."""
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        return {
            file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None
        }

    def download(
        self, repository: str, revision: str, folder: Path, leave_out: Sequence[str]
    ) -> None:
        """Download what is missing; one try of this is resumed by the next."""
        from huggingface_hub import snapshot_download

        snapshot_download(
            repository, revision=revision, local_dir=folder, ignore_patterns=list(leave_out)
        )


def weights_command(
    step: Annotated[Step, typer.Argument(help="fetch, or wait until they are there.")],
    repository: Annotated[str, typer.Argument(help="Repository on the hub, OWNER/NAME.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the model; created if missing.")],
    revision: Annotated[
        str, typer.Option("--revision", help="Commit of the repository; never a branch that moves.")
    ],
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            help="Seconds to wait for the mark (wait) or for another pod that fetches (fetch).",
            min=0,
        ),
    ] = 86400.0,
    *,
    without_weights: Annotated[
        bool,
        typer.Option(
            "--without-weights",
            help="Configuration and tokenizer alone, for routers: no *.safetensors, *.bin, ….",
        ),
    ] = False,
) -> None:
    """Fetch a model's weights onto a volume, or wait until they are there.

    Several pods may fetch into one folder, e.g. a hostPath: one does, the others wait for it.
    """
    if step is Step.FETCH:
        fetch(
            HuggingFaceHub(),
            repository,
            revision,
            folder,
            timeout=timeout,
            without_weights=without_weights,
        )
    else:
        wait(
            repository,
            revision,
            folder,
            timeout,
            SystemClock(),
            time.sleep,
            without_weights=without_weights,
        )


def is_complete(
    repository: str, revision: str, folder: Path, *, without_weights: bool = False
) -> bool:
    """Tell whether ``folder`` holds all of this revision, or all but its weights."""
    marks = (MARK, CONFIG_MARK) if without_weights else (MARK,)
    return any(_read_mark(folder / mark) == f"{repository}@{revision}" for mark in marks)


def fetch(
    hub: Hub,
    repository: str,
    revision: str,
    folder: Path,
    *,
    timeout: float = 86400.0,
    without_weights: bool = False,
    clock: Clock | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Bring the weights into ``folder`` and mark it, or find that they are there.

    Raises:
        EngineError: a file is not what the hub says; it is deleted, so that the next try fetches
            it again. Or the folder is not writable, or another pod fetches into it for longer than
            ``timeout`` seconds.
    """

    def complete() -> bool:
        return is_complete(repository, revision, folder, without_weights=without_weights)

    # Without the lock first: a folder that holds all may be read-only.
    if not complete():
        with locked(folder, timeout, clock or SystemClock(), sleep, _say, done=complete) as held:
            if held and not complete():
                _fetch(hub, repository, revision, folder, without_weights=without_weights)
                return
    print(f"{folder} holds {repository}@{revision} already")


def _fetch(
    hub: Hub, repository: str, revision: str, folder: Path, *, without_weights: bool
) -> None:
    """Fetch while no other process does."""
    # Of another revision's mark nothing must be left while files change under it.
    for mark in (MARK, CONFIG_MARK):
        if _read_mark(folder / mark) != f"{repository}@{revision}":
            (folder / mark).unlink(missing_ok=True)
    leave_out = WEIGHTS if without_weights else ()
    digests = {
        name: digest
        for name, digest in hub.digests(repository, revision).items()
        if not any(fnmatch(name, pattern) for pattern in leave_out)
    }
    hub.download(repository, revision, folder, leave_out)
    broken = [name for name, digest in digests.items() if sha256_of(folder / name) != digest]
    for name in broken:
        (folder / name).unlink(missing_ok=True)
    if broken:
        raise EngineError(
            f"{len(broken)} of {len(digests)} files are not as published and were deleted: "
            f"{', '.join(sorted(broken))}; run it again"
        )
    _write_mark(folder, CONFIG_MARK if without_weights else MARK, f"{repository}@{revision}")
    print(f"{folder} holds {repository}@{revision}: {len(digests)} large files are as published")


def wait(
    repository: str,
    revision: str,
    folder: Path,
    timeout: float,
    clock: Clock,
    sleep: Callable[[float], object],
    *,
    without_weights: bool = False,
) -> None:
    """Return when ``folder`` holds all of this revision, or all but its weights.

    Raises:
        EngineError: it does not after ``timeout`` seconds.
    """
    deadline = clock.monotonic() + timeout
    while not is_complete(repository, revision, folder, without_weights=without_weights):
        if clock.monotonic() >= deadline:
            raise EngineError(
                f"{folder} does not hold {repository}@{revision} after {timeout:g} s: look at the "
                "Job or DaemonSet that fetches it"
            )
        sleep(POLL_SECONDS)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 (hex) of ``file``; empty if there is none."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def _read_mark(mark: Path) -> str:
    try:
        return mark.read_text("utf-8").strip()
    except OSError:
        return ""


def _write_mark(folder: Path, mark: str, text: str) -> None:
    draft = folder / f"{mark}.new"
    draft.write_text(f"{text}\n", "utf-8")
    draft.replace(folder / mark)


def _say(text: str) -> None:
    print(text, flush=True)
