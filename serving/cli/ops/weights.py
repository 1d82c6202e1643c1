"""``moe-serving weights``: downloads a model's weights to a volume once, or waits for them.

A Job fetches to a shared volume, a DaemonSet to a disk on each node; ranks and routers wait for a
mark file. If several pods fetch into one directory, one downloads and the others wait. An
interrupted fetch is resumed; a complete directory needs no network. The mark is written only after
every large file has matched the digest published by the hub.
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
"""Mark file in the model directory; contains repository@revision."""
CONFIG_MARK = ".moe-serving-config-complete"
"""Mark file of a fetch without weights."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
"""Patterns of file names that --without-weights leaves out."""
POLL_SECONDS = 5.0
_CHUNK = 2**24


class Step(StrEnum):
    """Subcommands."""

    FETCH = "fetch"
    WAIT = "wait"


class Hub(Protocol):
    """A source of model weights."""

    def digests(self, repository: str, revision: str) -> Mapping[str, str]:
        """Return the SHA-256 (hex) of each large file, by its path in the repository."""
        ...

    def download(
        self, repository: str, revision: str, folder: Path, leave_out: Sequence[str]
    ) -> None:
        """Download the files that match no pattern in ``leave_out``; resume a partial download."""
        ...


class HuggingFaceHub:
    """The Hugging Face hub; HF_TOKEN is the token for private repositories."""

    def digests(self, repository: str, revision: str) -> Mapping[str, str]:
        """Return the SHA-256 of each file in large-file storage; see ``Hub``."""
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        return {
            file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None
        }

    def download(
        self, repository: str, revision: str, folder: Path, leave_out: Sequence[str]
    ) -> None:
        """Download missing files; see ``Hub``."""
        from huggingface_hub import snapshot_download

        snapshot_download(
            repository, revision=revision, local_dir=folder, ignore_patterns=list(leave_out)
        )


def weights_command(
    step: Annotated[Step, typer.Argument(help="Download the weights, or wait for them.")],
    repository: Annotated[str, typer.Argument(help="Repository on the hub, OWNER/NAME.")],
    folder: Annotated[Path, typer.Argument(help="Model directory; created if missing.")],
    revision: Annotated[
        str,
        typer.Option(
            "--revision", help="Commit of the repository. A branch name would not pin the weights."
        ),
    ],
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            help="Maximum wait for the download (wait) or for another pod (fetch), seconds.",
            min=0,
        ),
    ] = 86400.0,
    *,
    without_weights: Annotated[
        bool,
        typer.Option(
            "--without-weights",
            help="Skip *.safetensors, *.bin and other weights: routers need only the "
            "configuration and the tokenizer.",
        ),
    ] = False,
) -> None:
    """Download a model's weights to a volume, or wait until they are complete.

    Several pods may share one directory, e.g. a hostPath volume: one downloads while the others
    wait.
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
    """Return whether ``folder`` has all files of a revision, or all but its weights."""
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
    """Download the weights into ``folder`` and write the mark, unless the folder is complete.

    Args:
        hub: Source of the files.
        repository: OWNER/NAME.
        revision: Commit.
        folder: Model directory; created if missing.
        timeout: Maximum time to wait for another pod, seconds.
        without_weights: Whether to leave out the weights.
        clock: Source of time.
        sleep: Waits for a number of seconds.

    Raises:
        EngineError: A file differs from the published one (it is deleted for the next attempt),
            the directory is not writable, or another pod has not finished within ``timeout``.
    """

    def complete() -> bool:
        return is_complete(repository, revision, folder, without_weights=without_weights)

    # Check without the lock first: a complete directory may be read-only.
    if not complete():
        with locked(folder, timeout, clock or SystemClock(), sleep, _say, done=complete) as held:
            if held and not complete():
                _fetch(hub, repository, revision, folder, without_weights=without_weights)
                return
    print(f"{folder} already contains {repository}@{revision}")


def _fetch(
    hub: Hub, repository: str, revision: str, folder: Path, *, without_weights: bool
) -> None:
    """Download and check the files; the caller holds the lock."""
    # Remove the mark of another revision before its files change.
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
            f"{len(broken)} of {len(digests)} files do not match their published checksums and "
            f"were deleted: {', '.join(sorted(broken))}; run the command again"
        )
    _write_mark(folder, CONFIG_MARK if without_weights else MARK, f"{repository}@{revision}")
    print(
        f"{folder} contains {repository}@{revision}: the checksums of {len(digests)} large files "
        "match"
    )


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
    """Wait until ``folder`` has all files of a revision, or all but its weights.

    Raises:
        EngineError: Files are still missing after ``timeout`` seconds.
    """
    deadline = clock.monotonic() + timeout
    while not is_complete(repository, revision, folder, without_weights=without_weights):
        if clock.monotonic() >= deadline:
            raise EngineError(
                f"{folder} does not contain {repository}@{revision} after {timeout:g} s: see the "
                "Job or DaemonSet that downloads it"
            )
        sleep(POLL_SECONDS)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 (hex) of a file; empty if it does not exist."""
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
