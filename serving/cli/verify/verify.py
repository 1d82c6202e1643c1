"""``moe-serving verify``: checks that splitting the experts changes no generated token.

Starts each layout in turn, sends it the same prompts, and stops it.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
from serving.client.aio import AsyncRestClient
from serving.client.credentials import NO_ACCESS, Access, access_from
from serving.client.errors import ClientError
from serving.client.flags import ApiKeyOption, CaFileOption, CertFileOption, ServerNameOption
from serving.errors import EngineError, NotReady, SettingsError
from serving.settings import Settings

EXIT_DIFFERENT = 1
EXIT_NOT_STARTED = 2


def verify_command(
    ranks: Annotated[
        str,
        typer.Option(
            "--ranks", metavar="N,N,…", help="Layouts to start: the number of ranks in each."
        ),
    ] = "1,2",
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Number of prompts.")] = 24,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens to generate for each prompt.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the generated prompts.")] = 0,
    urls: Annotated[
        list[str] | None,
        typer.Option(
            "--rest-url",
            metavar="URL",
            help="REST address of a running router to include. Repeatable.",
            rich_help_panel="Router",
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
    """Start each layout in turn, send it the same prompts, and compare every token.

    Uses float32 and greedy sampling, and sends all prompts concurrently.

    Exit code 0 if all layouts generate the same tokens, 1 if one differs from the first, 2 if a
    layout could not be started.

    For example:

      moe-serving verify --ranks 1,2,4 --prompts 24

      moe-serving verify --ranks 1 --rest-url http://127.0.0.1:8000

      moe-serving verify --ranks 1 --save one.json   (then, later or on another machine)

      moe-serving verify --ranks "" --against one.json --rest-url https://r1.example.com
    """
    layouts = parse_layouts(ranks, none=bool(against and urls))
    settings = settings_from(
        config, ["engine.dtype=float32", *(sets or ())], model=model, speculative=speculative
    )
    texts = make_prompts(prompts, seed)
    passed_on = flags_for_up(config, sets, model, speculative)
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
        results.extend((url, ask(url, settings, texts, max_tokens, access)) for url in urls or ())
    except LayoutNotStarted as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_STARTED) from error
    if save is not None:
        reference.save(save, settings.model.name, max_tokens, texts, results[0][1])
    comparisons = judge(results)
    print("\n" + table(comparisons, texts))
    if not all(item.equal for item in comparisons):
        raise typer.Exit(EXIT_DIFFERENT)
    print(f"\nall {len(comparisons)} layouts generated the same tokens")


def judge(results: Sequence[tuple[str, list[list[int]]]]) -> list[Comparison]:
    """Compare every layout with the first, and the first with itself to detect empty answers."""
    reference = results[0][1]
    return [compare(name, reference, answers) for name, answers in results]


def parse_layouts(text: str, *, none: bool = False) -> list[int]:
    """Return the numbers of ranks in ``1,2,4``.

    Args:
        text: The list.
        none: Whether an empty list is accepted.

    Raises:
        SettingsError: The text is not such a list.
    """
    try:
        layouts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        layouts = []
    if not layouts and none and not text.strip():
        return []
    if not layouts or min(layouts) < 1:
        raise SettingsError(
            f"--ranks {text}: must be numbers of ranks, separated by commas, e.g. 1,2,4"
        )
    return layouts


def flags_for_up(
    config: Path | None, sets: list[str] | None, model: str | None, speculative: str | None
) -> list[str]:
    """Return the flags that each ``moe-serving up`` gets from this command line."""
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
    """Send all prompts concurrently to a router; return the token ids of each answer.

    Raises:
        NotReady: No server answers at ``url``.
        EngineError: A request failed, or returned no token ids.
    """
    try:
        return asyncio.run(_ask_all(url, settings, prompts, max_tokens, access))
    except ExceptionGroup as group:
        # A failed request cancels the others; its error is the one to report.
        raise group.exceptions[0] from None


async def _ask_all(
    url: str, settings: Settings, prompts: Sequence[str], max_tokens: int, access: Access
) -> list[list[int]]:
    async with AsyncRestClient(url, access) as client, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_ask(client, settings, prompt, max_tokens)) for prompt in prompts
        ]
    return [task.result() for task in tasks]


async def _ask(
    client: AsyncRestClient, settings: Settings, prompt: str, max_tokens: int
) -> list[int]:
    body = {
        "model": settings.model.name,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    try:
        answer = await client.post_json(
            "/v1/completions", body, timeout=settings.router.request_timeout
        )
    except ClientError as error:
        if error.kind == "connect":
            raise NotReady(str(error)) from error
        raise EngineError(str(error)) from error
    return token_ids_of(answer)


def token_ids_of(answer: Mapping[str, Any]) -> list[int]:
    """Return the generated token ids of a completion.

    Raises:
        EngineError: The completion has no token ids.
    """
    ids = (answer.get("choices") or [{}])[0].get("token_ids")
    if not isinstance(ids, list) or not ids:
        raise EngineError("the answer contains no token ids although return_token_ids was set")
    return [int(item) for item in ids]
