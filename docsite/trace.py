"""A trace as a picture: what a request waited for, from the client to the tools of its run, one bar a span."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

_ROW, _LEFT, _WIDE, _RIGHT = 26, 270, 520, 90  # a row's height; a row from left to right: its name, the bars, a time
_COLOURS = {"chat": "#6d4aff", "execute_tool": "#0b8a67"}
_OTHER = "#7b8698"


class Span(Protocol):
    """What is drawn of a span; times in nanoseconds."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def parent(self) -> str: ...
    @property
    def began(self) -> int: ...
    @property
    def ended(self) -> int: ...


@dataclass(frozen=True)
class Bar:
    """Milliseconds since the first one began."""

    name: str
    depth: int
    began: float
    took: float


def bars(spans: Iterable[Span]) -> list[Bar]:
    """A trace's spans, each behind the one that it is a part of, and in their order in time."""
    ordered = sorted(spans, key=lambda span: (span.began, -span.ended))
    known = {span.id for span in ordered}

    def below(parents: Iterable[Span], depth: int) -> Iterator[Bar]:
        for span in parents:
            yield Bar(span.name, depth, (span.began - ordered[0].began) / 1e6, (span.ended - span.began) / 1e6)
            yield from below([each for each in ordered if each.parent == span.id], depth + 1)

    return list(below([span for span in ordered if span.parent not in known], 0))


def svg(rows: Sequence[Bar]) -> str:
    """Self-contained, and on a ground of its own: legible in both themes."""
    total = max(row.began + row.took for row in rows) or 1.0
    width, height = _LEFT + _WIDE + _RIGHT, _ROW * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" font-family="sans-serif" font-size="13">',
        f"<title>{escape('; '.join(f'{row.name}: {row.took:.0f} ms' for row in rows))}</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>',
    ]
    for number, row in enumerate(rows):
        top = 8 + number * _ROW
        at, long = _LEFT + _WIDE * row.began / total, max(2.0, _WIDE * row.took / total)
        colour = _COLOURS.get(row.name.partition(" ")[0], _OTHER)
        parts += [
            f'<text x="{12 + 14 * row.depth}" y="{top + 17}" fill="#1d2430">{escape(row.name)}</text>',
            f'<rect x="{at:.1f}" y="{top + 5}" width="{long:.1f}" height="{_ROW - 10}" rx="2" fill="{colour}"/>',
            f'<text x="{at + long + 6:.1f}" y="{top + 17}" fill="#55606f">{row.took:,.0f} ms</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
