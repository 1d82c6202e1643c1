"""``moe-serving verify``: does splitting the experts change a single token?

Every layout is started in turn with the very commands that users type (``up --detach``,
``down``), with ports and a state folder of its own, so it disturbs nothing that runs.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from serving.cli.access import (
    NO_ACCESS,
    Access,
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    access_from,
)
from serving.cli.comparison import Comparison, compare, make_prompts, table
from serving.cli.machine import GIB, memory_for, memory_shortage
from serving.cli.options import (
    ConfigOption,
    ModelOption,
    SetOption,
    SpeculativeOption,
    settings_from,
)
from serving.errors import EngineError, NotReady, ServingError, SettingsError
from serving.settings import Settings

EXIT_DIFFERENT = 1
EXIT_NOT_STARTED = 2
STOP_TIMEOUT = 60.0
"""Seconds that ``down`` may take."""
START_MARGIN = 120.0
"""Seconds beyond group.start_timeout that ``up`` may take for Ray and the router."""
_LINES_KEPT = 15
_PORTS = ("router.rest_port", "router.grpc_port", "router.join_port", "ray.dashboard_port")


# What is started here is this command's alone, on loopback: it asks for no keys.
_PRIVATE = tuple(
    word
    for name in (
        "keys_file",
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "operator_tls_cert_file",
        "operator_tls_key_file",
        "join_tls_cert_file",
        "join_tls_key_file",
        "join_tls_client_ca_file",
    )
    for word in ("--set", f"security.{name}=null")
)


class LayoutNotStarted(ServingError):
    """A layout could not be started; nothing was compared."""


def verify_command(
    ranks: Annotated[
        str,
        typer.Option("--ranks", metavar="N,N,…", help="Layouts: ranks in the group of each."),
    ] = "1,2",
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Number of prompts.")] = 24,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens generated for each prompt.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the generated prompts.")] = 0,
    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Also compare a router that runs already (http://host:port). Repeatable.",
        ),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    model: ModelOption = None,
    speculative: SpeculativeOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
) -> None:
    """Start each layout in turn, send all the same prompts, compare every token.

    Float32 and greedy, all prompts at once. Ends with 0 if all layouts gave the same tokens,
    1 if any differs from the first, 2 if a layout could not be started.

    For example:

      moe-serving verify --ranks 1,2,4 --prompts 24

      moe-serving verify --ranks 1 --server http://127.0.0.1:8000
    """
    layouts = parse_layouts(ranks)
    settings = settings_from(
        config, ["engine.dtype=float32", *(sets or ())], model=model, speculative=speculative
    )
    texts = make_prompts(prompts, seed)
    passed_on = _pass_through(config, sets, model, speculative)
    results: list[tuple[str, list[list[int]]]] = []
    try:
        for count in layouts:
            name = f"{count} rank" + ("s" if count != 1 else "")
            print(f"{name}: starting", flush=True)
            with running(count, settings, passed_on) as url:
                print(f"{name}: {len(texts)} prompts of {max_tokens} tokens", flush=True)
                results.append((name, ask(url, settings, texts, max_tokens)))
        access = access_from(api_key, ca_file, cert_file, None)
        results.extend((url, ask(url, settings, texts, max_tokens, access)) for url in server or ())
    except LayoutNotStarted as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_STARTED) from error
    comparisons = judge(results)
    print("\n" + table(comparisons, texts))
    if not all(item.equal for item in comparisons):
        raise typer.Exit(EXIT_DIFFERENT)
    print(f"\nall {len(comparisons)} layouts gave the same tokens")


def judge(results: Sequence[tuple[str, list[list[int]]]]) -> list[Comparison]:
    """Compare every layout with the first (and the first with itself: it may be empty)."""
    reference = results[0][1]
    return [compare(name, reference, answers) for name, answers in results]


def parse_layouts(text: str) -> list[int]:
    """Return the numbers of ranks in ``1,2,4``.

    Raises:
        SettingsError: it is not such a list.
    """
    try:
        layouts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        layouts = []
    if not layouts or min(layouts) < 1:
        raise SettingsError(f"--ranks {text}: write the numbers of ranks as 1,2,4")
    return layouts


def _pass_through(
    config: Path | None, sets: list[str] | None, model: str | None, speculative: str | None
) -> list[str]:
    """Return the flags that every ``up`` gets as they were given here."""
    flags = [] if config is None else ["--config", str(config.resolve())]
    flags += ["--set", "engine.dtype=float32"]
    for item in sets or ():
        flags += ["--set", item]
    if model is not None:
        flags += ["--set", f"model.path={model}"]
    if speculative is not None:
        flags += ["--set", f"engine.speculative={speculative}"]
    return flags


@contextmanager
def running(ranks: int, settings: Settings, passed_on: Sequence[str]) -> Iterator[str]:
    """Run one group of ``ranks`` ranks; give the router's URL; stop everything at the end.

    Raises:
        LayoutNotStarted: with the reason that ``up`` gave.
    """
    workers = ranks * settings.group.tensor_parallel
    if settings.engine.kind == "vllm" and settings.platform == "cpu":
        shortage = memory_shortage(memory_for(workers))
        if shortage > 0:
            raise LayoutNotStarted(
                f"{ranks} ranks need about {memory_for(workers) / GIB:.1f} GiB of memory and "
                f"{shortage / GIB:.1f} GiB of that are missing; stop other programs or "
                "compare fewer ranks"
            )
    with tempfile.TemporaryDirectory(prefix="moe-verify-") as folder, ExitStack() as stack:
        ports = free_ports(len(_PORTS))
        environment = {**os.environ, "MOE_SERVING_STATE_DIR": folder}
        flags = [*passed_on, *_PRIVATE, "--groups", "1", "--ranks", str(ranks)]
        for name, port in zip(_PORTS, ports, strict=True):
            flags += ["--set", f"{name}={port}"]
        flags += ["--set", f"link.routers=[127.0.0.1:{ports[2]}]"]
        # Registered first: what a failed or interrupted start leaves behind is stopped too.
        stack.callback(_stop, environment)
        _start(flags, settings, environment)
        yield f"http://127.0.0.1:{ports[0]}"


def _start(flags: list[str], settings: Settings, environment: Mapping[str, str]) -> None:
    timeout = settings.group.start_timeout + START_MARGIN
    command = [sys.executable, "-m", "serving", "up", "--detach", "--no-sample", *flags]
    code, said = shown(command, environment, timeout)
    if code is None:
        raise LayoutNotStarted(f"not ready after {timeout:.0f} s")
    if code != 0:
        raise LayoutNotStarted("it could not be started:\n" + "\n".join(said))


def shown(
    command: Sequence[str], environment: Mapping[str, str], timeout: float
) -> tuple[int | None, Sequence[str]]:
    """Run ``command`` and show what it prints, indented, while it runs.

    Returns: its exit code (none: it was killed after ``timeout`` seconds) and its last lines.
    """
    said: deque[str] = deque(maxlen=_LINES_KEPT)
    too_late = threading.Event()
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:

        def end() -> None:
            too_late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            for line in process.stdout or ():
                said.append(line.rstrip())
                print(f"  {said[-1]}", flush=True)
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()  # Ctrl-C comes here too: nothing must go on starting
    return None if too_late.is_set() else code, said


def _stop(environment: Mapping[str, str]) -> None:
    try:
        subprocess.run(
            [sys.executable, "-m", "serving", "down"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=STOP_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print("warning: moe-serving down did not end in time", file=sys.stderr)


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports that are free on loopback now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]


def ask(
    url: str,
    settings: Settings,
    prompts: Sequence[str],
    max_tokens: int,
    access: Access = NO_ACCESS,
) -> list[list[int]]:
    """Send all ``prompts`` at once to the router at ``url``; return each answer's token ids.

    Raises:
        NotReady: nothing answers there.
        EngineError: a request failed or brought no token ids.
    """
    try:
        return asyncio.run(_ask_all(url, settings, prompts, max_tokens, access))
    except ExceptionGroup as group:
        # One failed request cancels the others; it says what is wrong.
        raise group.exceptions[0] from None


async def _ask_all(
    url: str, settings: Settings, prompts: Sequence[str], max_tokens: int, access: Access
) -> list[list[int]]:
    timeout = httpx.Timeout(settings.router.request_timeout, connect=5.0)
    limits = httpx.Limits(max_connections=None)
    async with (
        # Proxies of the environment are for the world outside.
        httpx.AsyncClient(
            base_url=url,
            timeout=timeout,
            limits=limits,
            trust_env=False,
            headers=access.headers(),
            verify=access.ssl_context(),
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        tasks = [
            group.create_task(_ask(client, settings.model.name, prompt, max_tokens))
            for prompt in prompts
        ]
    return [task.result() for task in tasks]


async def _ask(client: httpx.AsyncClient, model: str, prompt: str, max_tokens: int) -> list[int]:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    try:
        response = await client.post("/v1/completions", json=body)
    except httpx.ConnectError as error:
        raise NotReady(f"nothing answers at {client.base_url}") from error
    except httpx.HTTPError as error:
        raise EngineError(f"{client.base_url}: {error!r}") from error
    if response.status_code != httpx.codes.OK:
        raise EngineError(
            f"{client.base_url} answered {response.status_code}: {response.text[:500]}"
        )
    return token_ids_of(response.json())


def token_ids_of(answer: Mapping[str, Any]) -> list[int]:
    """Return the generated token ids in a completion ``answer``.

    Raises:
        EngineError: there are none in it.
    """
    ids = (answer.get("choices") or [{}])[0].get("token_ids")
    if not isinstance(ids, list) or not ids:
        raise EngineError("the answer holds no token ids (return_token_ids was asked for)")
    return [int(item) for item in ids]
