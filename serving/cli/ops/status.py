"""``moe-serving status``: groups, ranks, experts and load, as reported by a router."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.cli.local.state import NotRunning, RunState, StateFile, state_folder
from serving.cli.ops.kube_pods import placements, pods_table, ray_pods
from serving.client.credentials import NO_ACCESS, Access, access_from
from serving.client.errors import message_of
from serving.client.flags import (
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    RestUrlOption,
    ServerNameOption,
)
from serving.client.rest import RestClient
from serving.engine.processes import living
from serving.errors import NotReady, PermissionDenied, ServingError, Unauthenticated

_HTTP_OK = 200
_REFUSED: dict[int, type[ServingError]] = {401: Unauthenticated, 403: PermissionDenied}
_STATE_STYLE = {"ready": "green", "joining": "yellow", "draining": "yellow", "fenced": "red"}
_MIB = 2**20


def status_command(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    kube: Annotated[
        bool, typer.Option("--kube", help="Show the pod and the Kubernetes node of each rank.")
    ] = False,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            help="Namespace of the pods, for --kube.",
            show_default="the current context's",
        ),
    ] = None,
    url: RestUrlOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> int:
    r"""Show groups, their ranks, the experts that each rank computes, and the load.

    With --kube, also shows the pod and the node of each rank. This uses kubectl's current context
    and requires permission to list pods. Specify the router with --rest-url, e.g. after kubectl
    port-forward. A router with API keys requires a key of role admin.

    For a release NAME in NAMESPACE with TLS:

      kubectl -n NAMESPACE port-forward service/NAME-moe-serving-rest 8000:8000

      moe-serving status --kube -n NAMESPACE --rest-url https://127.0.0.1:8000 \
      --ca-file ca.crt --tls-server-name NAME-moe-serving-rest.NAMESPACE.svc

    Exit code 0 if a router answers, 1 if not.
    """
    file = StateFile(state_folder())
    state = file.read() if url is None else None
    try:
        access = access_from(
            api_key, ca_file, cert_file, file.folder if url is None else None, server_name
        )
        fleet = fleet_of(url, state, held=file.held(), access=access)
    except (NotReady, NotRunning) as error:
        if not as_json:
            raise
        print(json.dumps({"running": False, "reason": str(error), "fleet": None}))
        return 1
    placed = None
    if kube:
        space, pods = asyncio.run(ray_pods(namespace))
        placed = placements(fleet, pods)
    if as_json:
        found = {"running": True, "fleet": fleet, "local": local_facts(state)}
        print(json.dumps(found if placed is None else {**found, "placements": placed}))
        return 0
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    for line in header_lines(url, state, fleet, time.time()):
        console.print(line)
    if placed is None:
        console.print(ranks_table(fleet))
        return 0
    console.print(Text(f"{_plural(len(pods), 'Ray pod')} in namespace {space}", style="dim"))
    console.print(pods_table(placed))
    return 0


def fleet_of(
    url: str | None, state: RunState | None, *, held: bool, access: Access = NO_ACCESS
) -> Mapping[str, Any]:
    """Return the body of /fleet.

    Args:
        url: REST address of the router. None means the address of the local run.
        state: State of the local run. None if there is no local run.
        held: Whether the local run holds its state folder, i.e. is alive.
        access: Key and certificates.

    Raises:
        Unauthenticated: The router requires a key.
        PermissionDenied: The key does not have role admin.
        NotRunning: There is no local run; the message states the remedy.
        NotReady: The router does not answer.
    """
    if url is None:
        if state is None:
            starting = (
                "moe-serving up is still starting" if held else "nothing is running on this machine"
            )
            raise NotRunning(starting)
        if not held:
            alive = len(living(state.processes))
            after = f"; {alive} of its processes are still running" if alive else ""
            raise NotRunning(f"the last run ended without cleaning up{after}: run moe-serving down")
        url = state.rest_url
    status, body = RestClient(url, access).get_json("/fleet")
    if status in _REFUSED:
        raise _REFUSED[status](
            f"{url} answered {status}: {message_of(body)} (/fleet requires a key of role admin: "
            "--api-key, or MOE_SERVING_API_KEY)"
        )
    if status != _HTTP_OK or not isinstance(body, Mapping) or "groups" not in body:
        raise NotReady(f"{url} is not a moe-serving router (status {status} for /fleet)")
    return body


def local_facts(state: RunState | None) -> dict[str, Any] | None:
    """Return the fields of the local run that --json adds, without secrets."""
    if state is None:
        return None
    return {
        "pid": state.up.pid,
        "rest_url": state.rest_url,
        "grpc_address": state.grpc_address,
        "started_at_unix_seconds": state.started_at,
        "log_folder": state.log_folder,
        "memory_bytes": memory_bytes(state),
        "processes": len(living(state.processes)),
    }


def memory_bytes(state: RunState) -> int:
    """Return the memory of all processes of the local run (proportional set size), bytes."""
    total = 0
    for process in living((state.up, *state.processes)):
        # The process may have ended, or may belong to another user.
        with contextlib.suppress(psutil.Error):
            total += int(process.memory_full_info().pss)
    return total


def header_lines(
    url: str | None, state: RunState | None, fleet: Mapping[str, Any], now: float
) -> list[Text]:
    """Return the lines above the table."""
    groups: Sequence[Mapping[str, Any]] = fleet["groups"]
    ready = sum(group["state"] == "ready" for group in groups)
    first = Text.assemble(
        (f"{ready} of {_plural(len(groups), 'group')} ready", "bold"),
        f", {models_text(fleet)}, "
        f"{_plural(int(fleet.get('inflight_requests', 0)), 'request')} in flight",
    )
    if state is None:
        return [first, Text(f"router {url}", style="dim")]
    where = (
        f"REST {state.rest_url}/v1, gRPC {state.grpc_address}, up {_span(now - state.started_at)}"
        f", {memory_bytes(state) / 2**30:.1f} GiB in "
        f"{_plural(len(living(state.processes)) + 1, 'process', 'processes')}, "
        f"logs {state.log_folder}"
    )
    return [first, Text(where, style="dim")]


def models_text(fleet: Mapping[str, Any]) -> str:
    """Return the model, or each model with its pools, ready groups and queued requests."""
    models: Sequence[Mapping[str, Any]] = fleet.get("models", ())
    if len(models) <= 1 and all(len(model["pools"]) <= 1 for model in models):
        adapters = [text for model in models if (text := _adapters_text(model))]
        return f"model {fleet.get('model', '?')}" + (f" ({adapters[0]})" if adapters else "")
    parts = []
    for model in models:
        several = len(model["pools"]) > 1
        pools = ", ".join(
            f"{str(pool['name']) + ' ' if several else ''}"
            f"{pool['ready_groups']} of {pool['groups']} ready"
            for pool in model["pools"]
        )
        queued = int(model["queued_requests"])
        waiting = f", {_plural(queued, 'request')} waiting" if queued else ""
        adapters_text = _adapters_text(model)
        adapted = f", {adapters_text}" if adapters_text else ""
        parts.append(f"{model['name']} ({pools}{waiting}{adapted})")
    return f"{'models' if len(models) > 1 else 'model'} {', '.join(parts)}"


def ranks_table(fleet: Mapping[str, Any]) -> Table:
    """Return a table with a row for each rank."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    # Models are shown only if there are several, and apps only while a pool has two of them, during
    # a blue/green upgrade.
    by_pool = len({_pool_text(group) for group in fleet["groups"]}) > 1
    apps = {(_pool_text(group), group.get("app", "")) for group in fleet["groups"]}
    several = len(apps) > len({pool for pool, _ in apps})
    names = ("group", "state", "rank", "node", "pid", "experts", "expert tokens")
    for name in (*(("model",) if by_pool else ()), *(("app",) if several else ()), *names):
        table.add_column(name, no_wrap=True)
    adapted = any(rank.get("adapter_slots") for group in fleet["groups"] for rank in group["ranks"])
    for name in (
        *(("adapters",) if adapted else ()),
        "in flight",
        "running",
        "waiting",
        "prompt tok",
        "output tok",
        "MiB",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for group in fleet["groups"]:
        for index, rank in enumerate(group["ranks"]):
            state = str(group["state"])
            app = str(group.get("app", "")) if index == 0 else ""
            table.add_row(
                *([_pool_text(group) if index == 0 else ""] if by_pool else []),
                *([app] if several else []),
                str(group["group_id"]) if index == 0 else "",
                Text(state, style=_STATE_STYLE.get(state, "")) if index == 0 else "",
                f"{rank['rank']}/{group['world_size']}",
                str(rank["node"]),
                str(rank["pid"]),
                experts_text(rank["local_expert_ids"], int(group["total_experts"])),
                expert_tokens_text(rank["expert_tokens"]),
                *(
                    [f"{len(rank.get('resident_adapters', ()))}/{rank.get('adapter_slots', 0)}"]
                    if adapted
                    else []
                ),
                *(
                    str(rank[name])
                    for name in (
                        "inflight_requests", "running_requests", "waiting_requests",
                        "prompt_tokens_total", "generated_tokens_total",
                    )
                ),
                str(int(rank["resident_bytes"]) // _MIB),
            )  # fmt: skip
        if group["state"] != "ready" and group.get("reason"):
            reason = Text(str(group["reason"]), style="dim")
            table.add_row(*[""] * (by_pool + several), "", reason)
    return table


def _adapters_text(model: Mapping[str, Any]) -> str:
    """Return the number of a model's LoRA adapters; empty: none."""
    adapters = model.get("adapters", ())
    return _plural(len(adapters), "adapter") if adapters else ""


def _pool_text(group: Mapping[str, Any]) -> str:
    """Return model and pool of a group; the pool is omitted if it has the default name."""
    model, pool = str(group.get("model", "")), str(group.get("pool", ""))
    return f"{model}/{pool}" if pool not in {"", "default"} else model


def experts_text(ids: Sequence[int], total: int) -> str:
    """Return expert ids as ranges, e.g. ``[0-7] of 16``."""
    if not ids:
        return "-"
    ranges: list[tuple[int, int]] = []
    for number in sorted(ids):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges)
    return f"[{text}] of {total}"


def expert_tokens_text(counts: Sequence[int], most: int = 8) -> str:
    """Return the sum and each expert's count, or their range if there are more than ``most``."""
    if not counts:
        return "-"
    numbers = [int(count) for count in counts]
    if len(numbers) <= most:
        return f"{sum(numbers)}: {' '.join(map(str, numbers))}"
    return f"{sum(numbers)}: {min(numbers)} to {max(numbers)} each"


def _plural(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
