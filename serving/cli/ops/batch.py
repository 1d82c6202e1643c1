"""``moe-serving batch``: submits batches, shows their progress, and fetches their results."""

import json
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from serving.cli.local.state import NotRunning, StateFile, state_folder
from serving.client.batches import BatchClient
from serving.client.credentials import access_from
from serving.client.flags import (
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    RestUrlOption,
    ServerNameOption,
)
from serving.client.rest import RestClient
from serving.errors import Conflict, InvalidRequest

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_POLL = 2.0
_LISTED = 20


class Action(StrEnum):
    """Subcommands."""

    SUBMIT = "submit"
    STATUS = "status"
    CANCEL = "cancel"
    RESULTS = "results"


def batch_command(
    action: Annotated[
        Action,
        typer.Argument(help="Submit a file, show batches, cancel one, or fetch its results."),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|ID]",
            help="submit: JSONL file. cancel, results: id of the batch. status: id, or all if "
            "omitted.",
            show_default=False,
        ),
    ] = None,
    *,
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="ROUTE", help="submit: Route of the lines.")
    ] = "/v1/chat/completions",
    window: Annotated[
        str,
        typer.Option(
            "--window", metavar="TIME", help="submit: Completion window, such as 30m, 24h or 3d."
        ),
    ] = "24h",
    wait: Annotated[
        bool,
        typer.Option("--wait", help="submit, status: Show progress until the batch has ended."),
    ] = False,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors", help="results: Fetch the failed lines instead of the successful ones."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="results: File to write.",
            show_default="standard output",
        ),
    ] = None,
    rest_url: RestUrlOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Run files of requests on capacity that other requests leave idle.

    The router needs the setting batch.directory.

    For example:

      moe-serving batch submit lines.jsonl --wait

      moe-serving batch status

      moe-serving batch results batch-0123 --output results.jsonl
    """
    client = _client(rest_url, api_key, ca_file, cert_file, server_name)
    if action is Action.STATUS and name is None:
        for batch in client.newest(_LISTED):
            print(summary_of(batch))
        return
    if name is None:
        what = "a file" if action is Action.SUBMIT else "the id of a batch"
        raise InvalidRequest(f"moe-serving batch {action} requires {what}")
    if action is Action.SUBMIT:
        _submit(client, Path(name), endpoint, window, wait=wait)
    elif action is Action.STATUS:
        _show(client, client.get(name), wait=wait)
    elif action is Action.CANCEL:
        print(summary_of(client.cancel(name)))
    elif action is Action.RESULTS:
        _results(client, client.get(name), output, errors=errors)


def _client(
    rest_url: str | None,
    api_key: str | None,
    ca_file: str | None,
    cert_file: str | None,
    server_name: str | None,
) -> BatchClient:
    """Return a client of the given router, or of the local run if none is given.

    Raises:
        NotRunning: No address is given, and there is no local run.
    """
    folder = None if rest_url else state_folder()
    if folder is not None:
        state = StateFile(folder).read()
        if state is None:
            raise NotRunning("nothing runs on this machine: pass --rest-url URL of a router")
        rest_url = state.rest_url
    assert rest_url is not None
    access = access_from(api_key, ca_file, cert_file, folder, server_name)
    return BatchClient(RestClient(rest_url, access))


def summary_of(batch: dict[str, Any]) -> str:
    """Return a one-line summary of a batch."""
    counts = batch["request_counts"]
    text = f"{batch['id']}  {batch['status']}"
    if counts["total"]:
        done = counts["completed"] + counts["failed"]
        text += f"  {done:,} of {counts['total']:,} lines, {counts['failed']:,} failed"
    return text


def _submit(client: BatchClient, path: Path, endpoint: str, window: str, *, wait: bool) -> None:
    bar = _Line()
    file = client.upload(path, lambda sent, size: bar.show(f"{sent:,} of {size:,} bytes"))
    bar.end()
    body = {
        "input_file_id": file["id"],
        "endpoint": endpoint,
        "completion_window": window,
        "metadata": {"file": path.name[:512]},
    }
    _show(client, client.create(json.dumps(body).encode()), wait=wait)


def _show(client: BatchClient, batch: dict[str, Any], *, wait: bool) -> None:
    bar = _Line()
    while wait and batch["status"] not in _ENDED:
        bar.show(summary_of(batch))
        time.sleep(_POLL)
        batch = client.get(batch["id"])
    bar.end()
    print(summary_of(batch))
    for problem in (batch["errors"] or {"data": []})["data"]:
        print(f"  {problem['code']}: {problem['message']}")


def _results(
    client: BatchClient, batch: dict[str, Any], output: Path | None, *, errors: bool
) -> None:
    if batch["status"] not in _ENDED:
        raise Conflict(f"{summary_of(batch)}: it has no results yet")
    file_id = batch["error_file_id" if errors else "output_file_id"]
    if output is None:
        _write(client, file_id, sys.stdout.buffer)
        return
    with output.open("wb") as file:
        _write(client, file_id, file)


def _write(client: BatchClient, file_id: str | None, file: BinaryIO) -> None:
    if file_id is not None:
        file.writelines(client.content(file_id))
    file.flush()


class _Line:
    """A status line that is overwritten on a terminal; prints nothing if there is no terminal."""

    def __init__(self) -> None:
        self._width = 0

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<{self._width}}")
            sys.stderr.flush()
            self._width = len(text)

    def end(self) -> None:
        if self._width:
            sys.stderr.write("\n")
            self._width = 0
