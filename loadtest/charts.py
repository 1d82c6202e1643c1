"""Charts as inline SVG: lines, steps, dots, marks. No script, no font, nothing from outside."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

_WIDTH, _HEIGHT = 620, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 16, 44
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
"""Classes that the page's style gives colours, light and dark."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour, in order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["line", "step", "dots"] = "line"
    colour: str = "c0"


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at ``x``, with words that show on hovering."""

    x: float
    label: str
    colour: str = "bad"


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart with its axes. Values that are not finite are left out."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    limits: Sequence[tuple[float, str]] = ()
    """Horizontal lines: value and words."""
    log_y: bool = False
    note: str = ""

    def svg(self) -> str:
        """Return it as a figure element; says so where there is nothing to draw."""
        points = [point for series in self.series for point in series.points if _finite(*point)]
        if self.log_y:
            points = [point for point in points if point[1] > 0]
        caption = f"<figcaption>{escape(self.title)}</figcaption>"
        if not points:
            return f"<figure>{caption}<p class=empty>nothing to show</p></figure>"
        xs = [x for x, _ in points] + [mark.x for mark in self.marks]
        ys = [y for _, y in points] + [value for value, _ in self.limits]
        # From zero, unless that would squeeze everything into a corner.
        left = min(xs) if len(xs) > 1 and min(xs) > max(xs) / 2 else min(0.0, *xs)
        low = 10.0 ** math.floor(math.log10(min(ys))) if self.log_y else min(0.0, *ys)
        x_scale = _Scale(left, max(xs) or 1.0, _LEFT, _WIDTH - _RIGHT)
        y_scale = _Scale(low, max(ys) or 1.0, _HEIGHT - _BOTTOM, _TOP, log=self.log_y)
        parts = [_axes(x_scale, y_scale, self.x, self.y)]
        for value, words in self.limits:
            at = y_scale(value)
            parts.append(
                f'<line class=limit x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" '
                f'y2="{at:.1f}"/><text class=limit x="{_WIDTH - _RIGHT}" y="{at - 4:.1f}" '
                f"text-anchor=end>{escape(words)}</text>"
            )
        parts += [_drawn(series, x_scale, y_scale) for series in self.series]
        parts += [
            f'<line class="mark {mark.colour}" x1="{x_scale(mark.x):.1f}" '
            f'x2="{x_scale(mark.x):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}">'
            f"<title>{escape(mark.label)}</title></line>"
            for mark in self.marks
        ]
        keys = "".join(
            f'<span><i class="{series.colour}"></i>{escape(series.name)}</span>'
            for series in self.series
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
        if self.log:
            first, last = math.floor(self._of(self.low)), math.ceil(self._of(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)  # noqa: PLR2004
            all_of = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [tick for tick in all_of if self.low <= tick <= self.high] or [self.high]
        if self.high <= self.low:
            return [self.low]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(
            f'<line class=grid x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor=end>{tick:g}</text>'
        )
    for tick in x.ticks():
        at = x(tick)
        parts.append(
            f'<line class=axis x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor=middle>{tick:g}</text>'
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
    few = dots if series.kind == "line" and len(points) <= 40 else ""  # noqa: PLR2004
    return f'<path class="{series.colour}" d="{path}"/>{few}'


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def cdf(values: Sequence[float], most: int = 200) -> list[tuple[float, float]]:
    """Return (value, share of values up to it), thinned to about ``most`` points."""
    ordered = sorted(values)
    count = len(ordered)
    step = max(count // most, 1)
    indices = sorted({*range(0, count, step), count - 1}) if count else []
    return [(ordered[index], (index + 1) / count) for index in indices]
