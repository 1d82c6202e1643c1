"""``moe-serving weights``: bring a model's weights onto a volume once, and wait for them.

One Job fetches; ranks and routers only wait for its mark. A fetch that was cut off goes on where it
was; what is there already is not fetched again, and then nothing is asked of the network. A mark is
written only when every large file has the digest that the hub gives for it.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

import typer

from serving.clock import Clock, SystemClock
from serving.errors import EngineError

MARK = ".moe-serving-complete"
"""File in the model's folder with what was fetched (repository@revision)."""
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

    def download(self, repository: str, revision: str, folder: Path) -> None:
        """Put all files into ``folder``, going on where an earlier try ended."""
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

    def download(self, repository: str, revision: str, folder: Path) -> None:
        """Download what is missing; one try of this is resumed by the next."""
        from huggingface_hub import snapshot_download

        snapshot_download(repository, revision=revision, local_dir=folder)


def weights_command(
    step: Annotated[Step, typer.Argument(help="fetch, or wait until they are there.")],
    repository: Annotated[str, typer.Argument(help="Repository on the hub, OWNER/NAME.")],
    folder: Annotated[Path, typer.Argument(help="Where the model is, or shall be.")],
    revision: Annotated[
        str, typer.Option("--revision", help="Commit of the repository; never a branch that moves.")
    ],
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait (wait).", min=0)
    ] = 86400.0,
) -> None:
    """Fetch a model's weights onto a volume, or wait for somebody else to have done so."""
    if step is Step.FETCH:
        fetch(HuggingFaceHub(), repository, revision, folder)
    else:
        wait(repository, revision, folder, timeout, SystemClock(), time.sleep)


def is_complete(repository: str, revision: str, folder: Path) -> bool:
    """Tell whether ``folder`` holds all of this revision."""
    try:
        return (folder / MARK).read_text("utf-8").strip() == f"{repository}@{revision}"
    except OSError:
        return False


def fetch(hub: Hub, repository: str, revision: str, folder: Path) -> None:
    """Bring the weights into ``folder`` and mark it, or find that they are there.

    Raises:
        EngineError: a file is not what the hub says; it is deleted, so that the next try fetches
            it again.
    """
    if is_complete(repository, revision, folder):
        print(f"{folder} holds {repository}@{revision} already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Of another revision's mark nothing must be left while files change under it.
    (folder / MARK).unlink(missing_ok=True)
    digests = hub.digests(repository, revision)
    hub.download(repository, revision, folder)
    broken = [name for name, digest in digests.items() if sha256_of(folder / name) != digest]
    for name in broken:
        (folder / name).unlink(missing_ok=True)
    if broken:
        raise EngineError(
            f"{len(broken)} of {len(digests)} files are not as published and were deleted: "
            f"{', '.join(sorted(broken))}; run it again"
        )
    _write_mark(folder, f"{repository}@{revision}")
    print(f"{folder} holds {repository}@{revision}: {len(digests)} large files are as published")


def wait(
    repository: str,
    revision: str,
    folder: Path,
    timeout: float,
    clock: Clock,
    sleep: Callable[[float], object],
) -> None:
    """Return when ``folder`` holds all of this revision.

    Raises:
        EngineError: it does not after ``timeout`` seconds.
    """
    deadline = clock.monotonic() + timeout
    while not is_complete(repository, revision, folder):
        if clock.monotonic() >= deadline:
            raise EngineError(
                f"{folder} does not hold {repository}@{revision} after {timeout:g} s: look at the "
                "Job that fetches it"
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


def _write_mark(folder: Path, text: str) -> None:
    draft = folder / f"{MARK}.new"
    draft.write_text(f"{text}\n", "utf-8")
    draft.replace(folder / MARK)
