"""Charts as inline SVG: lines, steps, dots and marks, without scripts, fonts or external files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

_WIDTH, _HEIGHT = 520, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 22, 46
_APART = 34.0
"""Minimum distance between labels of marks; 1.5 times as much for long labels."""
_FEW = 12
"""Lines with at most this many points have a dot at each point."""
_LINE = 15.0
"""Height of a line of text."""
_COARSE, _FINE = (1, 2, 5), (1, 2, 3, 5, 7)
_NARROW = 3.0
"""Logarithmic axes that span less than this factor have equidistant ticks."""
Kind = Literal["line", "step", "dots"]
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
"""CSS classes of the colours, which the style sheet defines for light and dark."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour, sorted by x."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: Kind = "line"
    colour: str = "c0"
    dashed: bool = False
    """Whether to draw a dashed line, to keep a line below it visible."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at ``x`` with a tooltip."""

    x: float
    label: str
    colour: str = "bad"
    name: str = ""
    """Short label above the line; labels that would overlap are merged as "first–last"."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its axes. Values that are not finite are omitted."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    limits: Sequence[tuple[float, str]] = ()
    """Horizontal lines, each as (value, label)."""
    log_y: bool = False
    note: str = ""

    def svg(self) -> str:
        """Return the chart as a figure element, with a message if there is nothing to draw."""
        points = [point for series in self.series for point in series.points if _finite(*point)]
        if self.log_y:
            points = [point for point in points if point[1] > 0]
        caption = f"<figcaption>{escape(self.title)}</figcaption>"
        if not points:
            return f"<figure>{caption}<p class=empty>nothing to show</p></figure>"
        xs = [x for x, _ in points] + [mark.x for mark in self.marks]
        ys = [y for _, y in points] + [value for value, _ in self.limits]
        # Begin at zero, unless all points would be in the right half.
        left = min(xs) if len(xs) > 1 and min(xs) > max(xs) / 2 else min(0.0, *xs)
        low = min(ys) if self.log_y else min(0.0, *ys)
        x_scale = _Scale(left, max(xs) or 1.0, _LEFT, _WIDTH - _RIGHT)
        y_scale = _Scale(low, max(ys) or 1.0, _HEIGHT - _BOTTOM, _TOP, log=self.log_y).rounded()
        parts = [_axes(x_scale, y_scale, self.x, self.y)]
        parts += [_drawn(series, x_scale, y_scale) for series in self.series]
        for value, words in self.limits:
            at = y_scale(value)
            # Avoid the labels of marks.
            words_at = at + _LINE if at < _TOP + _LINE else at - 4
            parts.append(
                f'<line class=limit x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" '
                f'y2="{at:.1f}"/><text class=limit x="{_LEFT + 4}" y="{words_at:.1f}">'
                f"{escape(words)}</text>"
            )
        parts += [
            f'<line class="mark {mark.colour}" x1="{x_scale(mark.x):.1f}" '
            f'x2="{x_scale(mark.x):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}">'
            f"<title>{escape(mark.label)}</title></line>"
            for mark in self.marks
        ]
        parts.append(_mark_names(self.marks, x_scale))
        keys = "".join(
            f'<span><i class="{series.colour}"></i>{escape(series.name)}</span>'
            for series in self.series
            if series.points
        )
        note = f"<small>{escape(self.note)}</small>" if self.note else ""
        return (
            f'<figure>{caption}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img '
            f'aria-label="{escape(self.title, quote=True)}">{"".join(parts)}</svg>'
            f"<div class=keys>{keys}</div>{note}</figure>"
        )


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(value) - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def _of(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value

    def ticks(self) -> list[float]:
        return [tick for tick in self.round_numbers() if self.low <= tick <= self.high] or [
            self.high
        ]

    def rounded(self) -> "_Scale":
        """Return the scale extended to the ticks around it."""
        # Twice, because a wider range can have fewer ticks.
        return self._between(self._between(self.round_numbers()).round_numbers())

    def _between(self, ticks: Sequence[float]) -> "_Scale":
        low = max((tick for tick in ticks if tick <= self.low), default=self.low)
        high = min((tick for tick in ticks if tick >= self.high), default=self.high)
        return replace(self, low=low, high=high)

    def round_numbers(self) -> list[float]:
        """Return round numbers from below ``low`` to above ``high``."""
        if self.log and self.high > _NARROW * self.low:
            first, last = math.floor(self._of(self.low)), math.ceil(self._of(self.high))
            decades = self._of(self.high) - self._of(self.low)
            steps = _FINE if decades <= 1 else _COARSE if decades <= 3 else (1,)  # noqa: PLR2004
            return [step * 10.0**power for power in range(first, last + 1) for step in steps]
        if self.high <= self.low:
            return [self.low]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
        first, last = math.floor(self.low / step), math.ceil(self.high / step)
        return [index * step for index in range(first, last + 1)]


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(
            f'<line class=grid x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor=end>{_short(tick)}</text>'
        )
    for tick in x.ticks():
        at = x(tick)
        parts.append(
            f'<line class=axis x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor=middle>{_short(tick)}</text>'
        )
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<line class=axis x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class=name x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor=middle>'
        f"{escape(x_label)}</text>"
        f'<text class=name x="14" y="{middle}" text-anchor=middle '
        f'transform="rotate(-90 14 {middle})">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _short(tick: float) -> str:
    return f"{tick / 1000:g}k" if abs(tick) >= 10_000 else f"{tick:g}"  # noqa: PLR2004


def _mark_names(marks: Sequence[Mark], x: _Scale) -> str:
    named = sorted((mark for mark in marks if mark.name), key=lambda mark: mark.x)
    apart = _APART if all(len(mark.name) == 1 for mark in named) else 1.5 * _APART
    groups: list[tuple[float, list[str]]] = []
    for mark in named:
        at = x(mark.x)
        if groups and at - groups[-1][0] < apart:
            groups[-1][1].append(mark.name)
        else:
            groups.append((at, [mark.name]))
    return "".join(
        f'<text x="{at:.1f}" y="{_TOP - 6}" text-anchor=middle>'
        f"{escape(names[0] if len(names) == 1 else f'{names[0]}–{names[-1]}')}</text>"
        for at, names in groups
    )


def _drawn(series: Series, x: _Scale, y: _Scale) -> str:
    points = [(x(a), y(b)) for a, b in series.points if _finite(a, b) and not (y.log and b <= 0)]
    if not points:
        return ""
    radius = 2 if series.kind == "dots" else 3
    dots = "".join(
        f'<circle class="{series.colour}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>'
        for a, b in points
    )
    if series.kind == "dots":
        return dots
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for a, b in points[1:]:
        path += f"H{a:.1f}V{b:.1f}" if series.kind == "step" else f"L{a:.1f} {b:.1f}"
    few = dots if series.kind == "line" and len(points) <= _FEW else ""
    dashed = " dashed" if series.dashed else ""
    return f'<path class="{series.colour}{dashed}" d="{path}"/>{few}'


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def cdf(values: Sequence[float], most: int = 200) -> list[tuple[float, float]]:
    """Return (value, share of values up to it), thinned to about ``most`` points."""
    ordered = sorted(values)
    count = len(ordered)
    step = max(count // most, 1)
    indices = sorted({*range(0, count, step), count - 1}) if count else []
    return [(ordered[index], (index + 1) / count) for index in indices]


def rates(times: Iterable[float]) -> list[tuple[float, float]]:
    """Return (second, events/s from then on) for event times in seconds.

    Steps last 1 s, or 1/150 of a longer range. The last step appears twice, with its start and its
    end.
    """
    values = sorted(times)
    if not values:
        return []
    width = max(1.0, values[-1] / 150)
    counts = [0] * (int(values[-1] / width) + 1)
    for value in values:
        counts[max(int(value / width), 0)] += 1
    steps = [(index * width, count / width) for index, count in enumerate(counts)]
    return [*steps, (len(counts) * width, steps[-1][1])]
