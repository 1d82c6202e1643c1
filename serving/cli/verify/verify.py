"""``moe-serving verify``: does splitting the experts change a single token?

Every layout is started in turn, is asked the same, and is stopped.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from serving.cli.options import (
    ConfigOption,
    ModelOption,
    SetOption,
    SpeculativeOption,
    settings_from,
)
from serving.cli.verify import reference
from serving.cli.verify.comparison import Comparison, compare, make_prompts, table
from serving.cli.verify.layouts import LayoutNotStarted, running
from serving.client.credentials import (
    NO_ACCESS,
    Access,
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    ServerNameOption,
    access_from,
)
from serving.errors import EngineError, NotReady, SettingsError
from serving.settings import Settings

EXIT_DIFFERENT = 1
EXIT_NOT_STARTED = 2


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
    save: reference.SaveOption = None,
    against: reference.AgainstOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    model: ModelOption = None,
    speculative: SpeculativeOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Start each layout in turn, send all the same prompts, compare every token.

    Float32 and greedy, all prompts at once. Ends with 0 if all layouts gave the same tokens,
    1 if any differs from the first, 2 if a layout could not be started.

    For example:

      moe-serving verify --ranks 1,2,4 --prompts 24

      moe-serving verify --ranks 1 --server http://127.0.0.1:8000

      moe-serving verify --ranks 1 --save one.json   (then, on another machine or another day)

      moe-serving verify --ranks "" --against one.json --server https://r1.example.com
    """
    layouts = parse_layouts(ranks, none=bool(against and server))
    settings = settings_from(
        config, ["engine.dtype=float32", *(sets or ())], model=model, speculative=speculative
    )
    texts = make_prompts(prompts, seed)
    passed_on = _pass_through(config, sets, model, speculative)
    results: list[tuple[str, list[list[int]]]] = []
    if against is not None:
        kept = reference.load(against, settings.model.name)
        texts, max_tokens = kept.prompts, kept.max_tokens
        results.append((against.name, kept.answers))
    try:
        for count in layouts:
            name = f"{count} rank" + ("s" if count != 1 else "")
            print(f"{name}: starting", flush=True)
            with running(count, settings, passed_on) as url:
                print(f"{name}: {len(texts)} prompts of {max_tokens} tokens", flush=True)
                results.append((name, ask(url, settings, texts, max_tokens)))
        access = access_from(api_key, ca_file, cert_file, None, server_name)
        results.extend((url, ask(url, settings, texts, max_tokens, access)) for url in server or ())
    except LayoutNotStarted as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_STARTED) from error
    if save is not None:
        reference.save(save, settings.model.name, max_tokens, texts, results[0][1])
    comparisons = judge(results)
    print("\n" + table(comparisons, texts))
    if not all(item.equal for item in comparisons):
        raise typer.Exit(EXIT_DIFFERENT)
    print(f"\nall {len(comparisons)} layouts gave the same tokens")


def judge(results: Sequence[tuple[str, list[list[int]]]]) -> list[Comparison]:
    """Compare every layout with the first (and the first with itself: it may be empty)."""
    reference = results[0][1]
    return [compare(name, reference, answers) for name, answers in results]


def parse_layouts(text: str, *, none: bool = False) -> list[int]:
    """Return the numbers of ranks in ``1,2,4``; no numbers at all only where that is allowed.

    Raises:
        SettingsError: it is not such a list.
    """
    try:
        layouts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        layouts = []
    if not layouts and none and not text.strip():
        return []
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
