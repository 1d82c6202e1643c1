"""The router benchmark's results as Markdown, for deploy/docs/performance.md."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- made by loadtest.bench: begin -->"
END = "<!-- made by loadtest.bench: end -->"

_NAMES = {"rest": "REST", "grpc": "gRPC"}


def markdown(data: Mapping[str, Any]) -> str:
    """Return all tables."""
    machine = data["machine"]
    parts = [
        f"Measured {data['when']} on {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, Python {machine['python']}, grpcio "
        f"{machine['packages']['grpcio']}; load average before: "
        f"{machine['load_average_before'][0]}"
        + (f"; **{data['remark']}**." if data.get("remark") else "."),
        ("Requests, 2 ranks, without streaming, 1 output token "
        "(requests/s per core: 1 / CPU per request):"),
        _table(
            ("protocol", "prompt tokens", "streams", "requests/s", "CPU ms/request",
             "requests/s per core"),
            data["requests"],
            lambda c, m: (
                f"{m['prompt_tokens']:.0f}", str(c["streams"]), f"{m['requests_per_second']:.0f}",
                f"{m['cpu_ms_per_request']:.2f}", f"{1e3 / m['cpu_ms_per_request']:.0f}",
            ),
        ),
        ("Added latency: one request at a time, 100-token prompt, 1 output token, with an engine "
        "that takes no time. The figures include client, router, link and rank, so they are an "
        "upper bound:"),
        _table(
            ("protocol", "p50 ms", "p99 ms"),
            data["latency"],
            lambda _, m: (f"{m['p50_ms']:.2f}", f"{m['p99_ms']:.2f}"),
        ),
        *_streaming(data),
        "By number of ranks (REST, 100-token prompts, 1 output token):",
        _table(
            ("protocol", "ranks", "CPU ms/request", "requests/s", "core share when idle", "MiB"),
            data["ranks"],
            lambda c, m: (
                str(c["ranks"]), f"{m['cpu_ms_per_request']:.2f}",
                f"{m['requests_per_second']:.0f}", f"{c['idle_share']:.1%}", f"{m['rss_mib']:.0f}",
            ),
        ),
        "By number of open streams (about the same total tokens/s):",
        _table(
            ("protocol", "open streams", "tokens/s", "CPU µs/token", "router MiB"),
            data["open_streams"],
            lambda c, m: (
                str(c["streams"]), f"{m['tokens_per_second']:.0f}", f"{m['cpu_us_per_token']:.0f}",
                f"{m['rss_mib']:.0f}",
            ),
        ),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _streaming(data: Mapping[str, Any]) -> list[str]:
    parts = []
    for part, words in (
        (
            "stepped",
            "Streaming, 64 streams, one token every 20 ms, all streams of a rank in the same step:",
        ),
        ("streaming", "Streaming, 64 streams, one token every 20 ms, each stream separately:"),
    ):
        if part in data:
            heads = ("protocol", "tokens/s", "messages per token", "CPU µs/token")
            parts += [words, _table(heads, data[part], _streaming_cells)]
    return parts


def _streaming_cells(_: Mapping[str, Any], measured: Mapping[str, Any]) -> Sequence[str]:
    return (
        f"{measured['tokens_per_second']:.0f}",
        f"{measured['messages_per_token']:.2f}",
        f"{measured['cpu_us_per_token']:.0f}",
    )


def write_page(page: Path, data: Mapping[str, Any]) -> None:
    """Replace the text between the markers of a page with the tables."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(data)}\n{END}{after}", "utf-8")


def _table(
    heads: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    cells: Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[str]],
) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        case = row["case"]
        if "measured" in row:
            texts = list(cells(case, row["measured"]))
        else:
            texts = [f"failed: {case['streams']} streams, {case['prompt_tokens']} prompt tokens"]
            texts += ["–"] * (len(heads) - 2)
        lines.append("| " + " | ".join((_NAMES[case["protocol"]], *texts)) + " |")
    return "\n".join(lines)
