"""``moe-serving autoscaler`` with several pools: explains decisions and replays recordings."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.autoscaler.decision import (
    HEADER,
    Decision,
    PolicyState,
    explain,
    notice_lines,
    row,
)
from serving.autoscaler.recording import read_cycles
from serving.autoscaler.signals import Observation
from serving.errors import NotReady, SettingsError
from serving.settings import Settings


def header(pools: Iterable[str]) -> str:
    """Return the heading above ``rows``; ``pools`` are the names of all pools."""
    return f"{'pool':<{_width(pools)}} {HEADER}"


def rows(
    pools: Iterable[str],
    decisions: Mapping[str, Decision],
    observations: Mapping[str, Observation],
) -> str:
    """Return one table row for each decision."""
    width = _width(pools)
    return "\n".join(
        f"{key:<{width}} {row(decision, observations[key])}" for key, decision in decisions.items()
    )


def explained(
    decisions: Mapping[str, Decision],
    observations: Mapping[str, Observation],
    problem: str = "",
) -> str:
    """Return signals, votes and decision of each pool."""
    return "\n\n".join(
        f"pool {key}\n{explain(decision, observations[key], problem)}"
        for key, decision in decisions.items()
    )


def replay_pools(settings: Settings, file: Path, *, detail: bool) -> None:
    """Print the decisions for a recording; ``detail`` adds all votes.

    A recording of one pool without a name is applied to the only pool of the settings.

    Raises:
        SettingsError: The file cannot be read, or contains a pool that is not in the settings.
    """
    from serving.autoscaler.pool_app import scaled_pools
    from serving.autoscaler.pool_loop import decide_pools

    pools = scaled_pools(settings)
    keys = [pool.key for pool in pools]
    states: dict[str, PolicyState] = {}
    if not detail:
        print(header(keys))
    for at, cycle in read_cycles(file):
        observations = {_recorded(each.pool, keys, file): each for each in cycle}
        held = {key: 0 for key in keys if key not in observations}
        decisions, _, states = decide_pools(
            pools, observations, states, held, at, settings.autoscaler
        )
        if detail:
            print(f"{explained(decisions, observations)}\n")
        else:
            print(rows(keys, decisions, observations))


def _recorded(pool: str, keys: list[str], file: Path) -> str:
    if pool in keys:
        return pool
    if not pool and len(keys) == 1:
        return keys[0]
    raise SettingsError(
        f"{file} was recorded for {f'pool {pool}' if pool else 'one pool without models[]'}, these "
        f"settings have {', '.join(keys)}: use the settings of the recorded autoscaler"
    )


async def explain_pools(settings: Settings) -> None:
    """Print one decision of each pool and change nothing.

    Raises:
        NotReady: The number of groups cannot be determined for any pool.
    """
    from serving.autoscaler.pool_app import pools_app, scaled_pools

    async with pools_app(settings, dry_run=True) as app:
        cycle = await app.autoscaler.run_once()
        notices = app.autoscaler.notices()
    if lines := notice_lines(notices):
        print("\n".join(lines))
    if cycle is None:
        raise NotReady("the requested number of groups cannot be determined; see the log above")
    print(explained(cycle.decisions, cycle.observations, cycle.problem))
    for pool in scaled_pools(settings):
        if pool.key in cycle.decisions:
            continue
        print(f"\npool {pool.key}\nthe requested number of groups is unknown; see the log above")


def _width(pools: Iterable[str]) -> int:
    return max(len("pool"), *map(len, pools))
