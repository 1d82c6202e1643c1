"""The comparison of the three load clients as Markdown."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadtest.bench.agreement_clients import OURS

TOLERANCE = 0.03
"""Maximum relative difference in tokens/s at which two clients agree."""
_COLUMNS = (
    ("tokens/s", "tokens_per_second", "{:.1f}"),
    ("seconds", "duration", "{:.2f}"),
    ("output tokens", "output_tokens", "{:.0f}"),
    ("TTFT mean ms", "ttft_mean", "{:.1f}"),
    ("TTFT p50 ms", "ttft_p50", "{:.1f}"),
    ("TPOT mean ms", "tpot_mean", "{:.2f}"),
    ("ITL mean ms", "itl_mean", "{:.2f}"),
)
Row = Mapping[str, Any]


def ratios(rows: Iterable[Row], endpoint: str) -> dict[str, float]:
    """Return the median over the rounds of our tokens/s divided by each other client's."""
    rounds: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["endpoint"] == endpoint and "seen" in row:
            found = rounds.setdefault(row["round"], {})
            found[row["client"]] = row["seen"]["tokens_per_second"]
    each: dict[str, list[float]] = {}
    for found in rounds.values():
        for client, rate in found.items():
            if client != OURS and OURS in found:
                each.setdefault(client, []).append(found[OURS] / rate)
    return {client: statistics.median(values) for client, values in each.items()}


def agrees(rows: Sequence[Row]) -> bool:
    """Return whether our tokens/s agree with those of every other client."""
    found = [ratio for endpoint in _endpoints(rows) for ratio in ratios(rows, endpoint).values()]
    return bool(found) and all(abs(ratio - 1) <= TOLERANCE for ratio in found)


def markdown(data: Mapping[str, Any]) -> str:
    """Return the page."""
    machine = data["machine"]
    parts = [
        "# Three load clients on the same server",
        (
            f"Measured {data['when']} on {machine['cores']} cores ({machine['cpu']}), Python "
            f"{machine['python']}; load average before: {machine['load_average_before'][0]}, "
            f"after: {data['load_average_after'][0]}. Server: {data['server']}. "
            f"{data['streams']} streams, {data['requests']} requests per turn, prompts of "
            f"{data['prompt_words']} words, answers of {data['output_tokens']} tokens "
            f"(ignore_eos), {data['rounds']} alternating rounds"
            + (f"; {data['remark']}." if data.get("remark") else ".")
        ),
        (
            "*tokens/s* is the number of output tokens divided by the time from the first request "
            "to the end of the last answer. *Router counted* is the increase of the router's "
            "counter `moe_generated_tokens_total`, including the client's warm-up. The tables "
            "show the medians of each client over the rounds."
        ),
    ]
    for endpoint in _endpoints(data["rows"]):
        parts += [f"## {endpoint}", _medians(data["rows"], endpoint), _ratios(data, endpoint)]
    failed = [row for row in data["rows"] if "not_run" in row]
    parts += [
        f"Not run: {row['client']}, {row['endpoint']}, round {row['round'] + 1}: {row['not_run']}"
        for row in failed
    ]
    parts += ["## Every turn", _turns(data["rows"])]
    return "\n\n".join(parts) + "\n"


def _medians(rows: Sequence[Row], endpoint: str) -> str:
    lines = [_line(["client", "completed", "failed", *(name for name, _, _ in _COLUMNS)])]
    lines.append("|---|" + "---:|" * (len(_COLUMNS) + 2))
    for client, seen in _by_client(rows, endpoint).items():
        cells = [client, *(str(sum(one[key] for one in seen)) for key in ("completed", "failed"))]
        for _, key, form in _COLUMNS:
            values = [one[key] for one in seen if one[key] is not None]
            cells.append(form.format(statistics.median(values)) if values else "–")
        lines.append(_line(cells))
    return "\n".join(lines)


def _ratios(data: Mapping[str, Any], endpoint: str) -> str:
    found = ratios(data["rows"], endpoint)
    words = [f"{ratio:.3f} of {client}'s" for client, ratio in found.items()]
    return "Ours, median of the rounds' ratios: " + (", ".join(words) or "nothing to compare") + "."


def _turns(rows: Sequence[Row]) -> str:
    heads = ["endpoint", "round", "client", "tokens/s", "tokens counted", "router counted", "load"]
    lines = [_line(heads), "|---|---:|---|" + "---:|" * 4]
    lines += [
        _line(
            [
                row["endpoint"],
                str(row["round"] + 1),
                row["client"],
                f"{row['seen']['tokens_per_second']:.1f}",
                str(row["seen"]["output_tokens"]),
                str(row["router_tokens"]),
                f"{row['load_average']:.1f}",
            ]
        )
        for row in rows
        if "seen" in row
    ]
    return "\n".join(lines)


def _by_client(rows: Sequence[Row], endpoint: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["endpoint"] == endpoint and "seen" in row:
            found.setdefault(row["client"], []).append(row["seen"])
    return found


def _endpoints(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["endpoint"] for row in rows))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
