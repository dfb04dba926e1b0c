"""Drawing primitives of the report: small, deterministic, self-contained SVG.

Written by hand instead of by a plotting library: text stays text in the page's own font, marks have
tooltips without JavaScript, nothing carries a date or a random id, and every text passes through an
escaping `Markup.format`. Colours are those of Okabe and Ito (2008); every arm also has a shape of
its own, so nothing depends on colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["COLOURS", "Frame", "mark", "nice_ticks", "svg", "tick_text"]

Point = tuple[float, float]

COLOURS = {
    "federated": "#0072B2",
    "pooled": "#009E73",
    "alone": "#D55E00",
    "site_noise": "#56B4E9",
    "without_privacy": "#CC79A7",
    "reference": "#4D4D4D",
    "low": "#0072B2",
    "middle": "#E69F00",
    "high": "#B22222",
}
MOST_POINTS = 400


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers from `low` to `high`.

    >>> nice_ticks(0.48, 0.93)
    [0.5, 0.6, 0.7, 0.8, 0.9]
    """
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(m for m in (1, 2, 5, 10, 20) if span / (step * m) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A short axis label."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def svg(width: float, height: float, label: str, body: Markup, css: str = "") -> Markup:
    """A picture with a text alternative.

    Args:
        width: in user units; the page scales the picture down where it must.
        height: in user units.
        label: what a reader who cannot see it is told.
        body: trusted content.
        css: class names.
    """
    return Markup(
        '<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" width="{:g}" height="{:g}">{}</svg>'
    ).format(css, label, width, height, width, height, body)


def mark(arm: str, x: float, y: float, title: str = "", size: float = 4.5) -> Markup:
    """An arm's mark: circle (federated), diamond (pooled), square (alone), triangle (without privacy), bar (reference)."""
    colour = COLOURS.get(arm, COLOURS["reference"])
    s = size
    if arm == "federated":
        shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" fill="{}" stroke="#fff" stroke-width=".8">').format(
            x, y, s, colour
        )
        end = "circle"
    else:
        outline = {
            "pooled": ((0, -s - 1), (s + 1, 0), (0, s + 1), (-s - 1, 0)),
            "alone": (
                (-s + 0.8, -s + 0.8),
                (s - 0.8, -s + 0.8),
                (s - 0.8, s - 0.8),
                (-s + 0.8, s - 0.8),
            ),
            "site_noise": ((0, s), (s, -s + 0.5), (-s, -s + 0.5)),
            "without_privacy": ((0, -s), (s, s - 0.5), (-s, s - 0.5)),
        }.get(arm, ((-1.6, -s - 1), (1.6, -s - 1), (1.6, s + 1), (-1.6, s + 1)))
        points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outline)
        fill = "#fff" if arm == "alone" else colour
        shape = Markup('<polygon points="{}" fill="{}" stroke="{}" stroke-width="1.6">').format(points, fill, colour)
        end = "polygon"
    tooltip = Markup("<title>{}</title>").format(title) if title else Markup("")
    return shape + tooltip + Markup("</{}>").format(end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A plotting area with linear axes.

    Attributes:
        width, height: of the whole picture.
        x_range, y_range: data at the edges of the plotting area.
    """

    width: float
    height: float
    x_range: Point
    y_range: Point
    left: float = 46
    right: float = 14
    top: float = 12
    bottom: float = 40

    def x(self, value: float) -> float:
        """Horizontal place of a value, kept inside the picture."""
        return self._place(value, self.x_range, self.left, self.width - self.right)

    def y(self, value: float) -> float:
        """Vertical place of a value, kept inside the picture."""
        return self._place(value, self.y_range, self.height - self.bottom, self.top)

    @staticmethod
    def _place(value: float, span: Point, start: float, end: float) -> float:
        low, high = span
        part = 0.5 if high <= low else (value - low) / (high - low)
        return start + min(max(part, 0.0), 1.0) * (end - start)

    def axes(
        self,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[float] | None = None,
        text: Callable[[float], str] = tick_text,
    ) -> Markup:
        """Grid, ticks and labels.

        Args:
            x_label: below the horizontal axis.
            y_label: beside the vertical axis.
            x_ticks: where the horizontal ticks are; round numbers by default.
            text: turns a horizontal tick into its label.
        """
        right, base = self.width - self.right, self.height - self.bottom
        parts = []
        for value in nice_ticks(*self.y_range, most=5):
            y = self.y(value)
            parts.append(
                Markup(
                    '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                    '<text class="tick" text-anchor="end" x="{:.1f}" y="{:.1f}">{}</text>'
                ).format(self.left, right, y, y, self.left - 7, y + 3.6, tick_text(value))
            )
        parts += [
            Markup('<text class="tick" text-anchor="middle" x="{:.1f}" y="{:.1f}">{}</text>').format(
                self.x(value), base + 16, text(value)
            )
            for value in (nice_ticks(*self.x_range) if x_ticks is None else x_ticks)
        ]
        parts.append(
            Markup(
                '<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="label" text-anchor="middle" x="{:.1f}" y="{:.1f}">{}</text>'
                '<text class="label" text-anchor="middle" transform="rotate(-90 11 {:.1f})" '
                'x="11" y="{:.1f}">{}</text>'
            ).format(
                self.left, right, base, base,
                (self.left + right) / 2, self.height - 5, x_label,
                (self.top + base) / 2, (self.top + base) / 2, y_label,
            )
        )  # fmt: skip
        return Markup("").join(parts)

    def line(
        self, points: Sequence[Point], colour: str, *, title: str = "", css: str = "curve",
        step: bool = False, dash: str = "",
    ) -> Markup:  # fmt: skip
        """A curve, thinned to what a screen can show; `step` holds a value until the next one."""
        stride = max(1, math.ceil(len(points) / MOST_POINTS))
        kept = [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else ())]
        path, before = [], None
        for px, py in kept:
            x, y = f"{self.x(px):.1f}", f"{self.y(py):.1f}"
            if before is None:
                path.append(f"M{x} {y}")
            else:
                path.append(f"H{x}V{y}" if step else f"L{x} {y}")
            before = y
        return Markup('<path class="{}" d="{}" stroke="{}" stroke-dasharray="{}"><title>{}</title></path>').format(
            css, "".join(path), colour, dash or "none", title
        )
