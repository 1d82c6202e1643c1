"""``plan --calibrate``: puts load on a running deployment and fits the planner's constants to it.

The fit uses three closed loops, each with prompts of two lengths. An open loop with other lengths,
which the fit does not use, then shows the error.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from serving.client.credentials import access_from
from serving.client.rest import RestClient
from serving.errors import EngineError, InvalidRequest, NotReady
from serving.planner.calibration import Fit, Observed, fit
from serving.planner.group import Group
from serving.planner.workload import Workload

_STREAMS = (1, 4, 16)
"""Numbers of streams per group in the closed loops."""
_SHORT = 0.25
"""Length of the short prompts as a fraction of the planned length."""
_CHECK_PROMPT, _CHECK_OUTPUT, _CHECK_RATE = 0.6, 0.75, 0.5
"""The check's lengths as fractions of the planned ones, and its rate as a fraction of the highest
rate."""
_LEAST_PROMPT, _LEAST_OUTPUT = 24, 8
"""Minimum lengths, because chat templates add some tokens and an inter-token latency needs
several."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The deployment at an address."""

    url: str
    groups: int
    ranks: int
    """Number of ranks per group."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of the check, predicted and measured."""

    name: str
    predicted: float
    seen: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.seen - 1 if self.seen else 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A calibration: the fit, and its error on the check."""

    found: Fit
    source: str
    check: str
    """Load of the check."""
    compared: tuple[Compared, ...]
    observed: tuple[Observed, ...] = ()
    """The loads of the fit, and the load of the check."""


def deployment(url: str, api_key: str | None) -> Deployment:
    """Return the ready groups behind a router.

    Raises:
        NotReady: No router answers, or it has no ready group.
        InvalidRequest: The groups differ, or the server is not a moe-serving router.
    """
    status, content = RestClient(url, access_from(api_key, None, None, None)).get_json("/fleet")
    groups = content.get("groups") if isinstance(content, dict) else None
    if groups is None:
        raise InvalidRequest(
            f"{url}/fleet answered {status} without groups: --calibrate requires a moe-serving "
            "router, and an --api-key that may see the fleet"
        )
    sizes = {int(group["world_size"]) for group in groups if group["state"] == "ready"}
    if not sizes:
        raise NotReady(f"no group is ready at {url}")
    if len(sizes) > 1:
        raise InvalidRequest(f"the groups at {url} have different sizes: {sorted(sizes)} ranks")
    ready = sum(group["state"] == "ready" for group in groups)
    return Deployment(url, ready, sizes.pop())


def calibrate(
    group: Group,
    at: Deployment,
    load: Workload,
    *,
    seconds: float,
    api_key: str | None,
) -> Measured:
    """Put load on a deployment for six times ``seconds``, and fit the constants to it.

    Args:
        group: The running group, with arbitrary constants.
        at: The deployment.
        load: The planned lengths; the loads use similar ones.
        seconds: Duration of each load.
        api_key: API key for the deployment. None means no key.

    Raises:
        EngineError: A load failed.
    """
    prompt, output = round(load.prompt), round(load.output)
    lengths = [max(_LEAST_PROMPT, round(prompt * share)) for share in (_SHORT, 1)]
    streams = ",".join(str(each * at.groups) for each in _STREAMS)
    observed: list[Observed] = []
    for number, length in enumerate(lengths):
        words = ["--concurrency", streams, "--duration", str(seconds), "--seed", str(number + 1)]
        observed += _loaded(at, words, length, max(_LEAST_OUTPUT, output), api_key)
    found = fit(group, observed)
    best = max(one.rate for one in observed if one.prompt >= observed[-1].prompt)
    tokens = (
        max(_LEAST_PROMPT, round(prompt * _CHECK_PROMPT)),
        max(_LEAST_OUTPUT, round(output * _CHECK_OUTPUT)),
    )
    rate = best * _CHECK_RATE
    words = ["--rate", f"{rate:.4f}", "--duration", str(2 * seconds), "--seed", "7"]
    (seen,) = _loaded(at, words, *tokens, api_key)
    fitted = replace(group, steps=replace(group.steps, constants=found.known))
    return Measured(
        found,
        f"{at.url}, {at.groups} groups of {at.ranks} ranks, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{rate:.3g} requests/s of {seen.prompt:.0f} prompt and {seen.output:.0f} output tokens",
        _compare(fitted, seen),
        (*observed, seen),
    )


def _compare(group: Group, seen: Observed) -> tuple[Compared, ...]:
    each = seen.rate / seen.groups
    predicted = group.serve(Workload(each, seen.prompt, seen.output), each)
    if predicted is None:
        raise InvalidRequest("the calibrated model cannot keep up with the check's rate")
    latency = predicted.ttft + predicted.itl * (seen.output - 1)
    return (
        Compared("TTFT mean, ms", predicted.ttft * 1e3, seen.ttft * 1e3),
        Compared("ITL mean, ms", predicted.itl * 1e3, seen.itl * 1e3),
        Compared("latency mean, ms", latency * 1e3, seen.latency * 1e3),
    )


def _loaded(
    at: Deployment, words: Sequence[str], prompt: int, output: int, api_key: str | None
) -> list[Observed]:
    """Run the load generator; return the results of each stage.

    Raises:
        EngineError: The load ended early, or requests failed.
    """
    from loadtest.arguments import parse
    from loadtest.runner import run_load

    command = ["run", "--rest-url", at.url, *words, "--warmup", "1", "--ignore-eos"]
    command += ["--prompt-tokens", str(prompt), "--output-tokens", str(output), "--timeout", "600"]
    command += ["--api-key", api_key] if api_key else []
    print(f"loading {at.url}: {' '.join(words)}, prompts of {prompt} tokens", file=sys.stderr)
    run = asyncio.run(run_load(parse(command, "moe-serving plan"), "moe-serving plan"))
    if run.stopped:
        raise EngineError(f"the load ended early: {run.stopped}")
    found = []
    for stage in run.stages:
        seen = run.summary(stage)
        done = [
            record
            for record in run.records
            if record.stage == stage.index and record.ok and record.phase == "measure"
        ]
        if not done or seen.failed:
            raise EngineError(
                f"{seen.failed} requests failed and {len(done)} succeeded at {stage.label}: "
                "the constants cannot be fitted"
            )
        found.append(
            Observed(
                prompt=sum(record.prompt_tokens for record in done) / len(done),
                output=sum(record.output_tokens for record in done) / len(done),
                rate=seen.completed,
                ttft=_mean([record.ttft for record in done]),
                itl=_mean([record.itl for record in done]),
                groups=at.groups,
            )
        )
    return found


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / max(len(known), 1)
