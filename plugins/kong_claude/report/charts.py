"""Figures of a report (matplotlib, no display)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as mdates
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kong_claude.report.summary import OTHERS

INK, BLUE, RED, GREEN = "#1f2933", "#2f6db5", "#c8443c", "#3a8f5c"
SERIES = ("#2f6db5", "#d98324", "#3a8f5c", "#8a5fb0", "#c8443c", "#5b7083", "#b8b8b8")
"""Of the dearest groups, and last of all others together."""


def trends(
    document: dict[str, Any], size: tuple[float, float], place: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> Figure:
    """Requests and refusals, where there is an access log, and cost over time, at `place` (left, bottom, width,
    height). Long spans are shown by day."""
    step = document["slot_s"]
    summed: dict[int, list[float]] = {}
    for at, counts in document["hours"].items():
        slot = summed.setdefault(int(at) // step * step, [0.0, 0.0, 0.0])
        for i, value in enumerate(counts):
            slot[i] += value
    slots = _slots(summed, step)
    rows = [summed.get(at, [0.0, 0.0, 0.0]) for at in slots]
    unit = _unit(step)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=place))
    wanted = [(0, f"Requests per {unit}", BLUE), (1, f"Refusals per {unit}", RED), (2, f"Cost per {unit}, USD", GREEN)]
    if document["total"]["requests"] is None:
        wanted = wanted[2:]
    axes = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (column, title, colour) in zip(axes, wanted, strict=True):
        values = _to_the_end([row[column] for row in rows])
        axis.fill_between(_ends(slots, step), values, step="post", color=colour, alpha=0.2, linewidth=0)
        axis.step(_ends(slots, step), values, where="post", color=colour, linewidth=1.2)
        _dress(axis, title)
    _dates(axes[-1])
    return figure


def costs(document: dict[str, Any], names: Sequence[str], size: tuple[float, float]) -> Figure:
    """What the groups of each dimension have cost over time, one upon the other: the dearest, and all others in one."""
    step = document["slot_s"]
    shown = {name: _dearest(document["cost_usd_over_time"][name]) for name in names}
    slots = _slots({int(at) for series in shown.values() for each in series.values() for at in each}, step)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine())
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, series) in zip(axes, shown.items(), strict=True):
        usd = [[each.get(str(at), 0.0) for at in slots] for each in series.values()]
        drawn = axis.stackplot(_ends(slots, step), list(map(_to_the_end, usd)), colors=SERIES, step="post", linewidth=0)
        _dress(axis, f"Cost per {_unit(step)} by {name}, USD")
        # By hand: a label that begins with an underscore has no place in a legend of its own making.
        legend = axis.legend(
            drawn, [_label(value) for value in series], fontsize=8, frameon=False, bbox_to_anchor=(1, 1)
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    _dates(axes[-1])
    return figure


def _dearest(series: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The first ones, as they come, and the sum of the rest."""
    whole = [value for value in series if value != OTHERS]
    if len(whole) > len(SERIES) - 1 or OTHERS in series:
        whole = whole[: len(SERIES) - 1]
    kept = {value: series[value] for value in whole}
    rest: dict[str, float] = {}
    for value, each in series.items():
        for at, usd in each.items() if value not in kept else ():
            rest[at] = rest.get(at, 0.0) + usd
    return kept | ({OTHERS: rest} if rest else {})


def _label(value: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in value)[:28]


def _slots(known: Iterable[int], step: int) -> list[int]:
    """From the first to the last of them: those without anything are zeros, not gaps."""
    found = set(known)
    return list(range(min(found), max(found) + step, step)) if found else []


def _ends(slots: Sequence[int], step: int) -> list[datetime]:
    """Where each begins, and where the last one ends: it is as wide as the others."""
    return [datetime.fromtimestamp(at, UTC) for at in [*slots, *(at + step for at in slots[-1:])]]


def _to_the_end(values: Sequence[float]) -> list[float]:
    return [*values, *values[-1:]]


def _unit(step: int) -> str:
    days = step // 86400
    return "hour" if not days else "day" if days == 1 else f"{days} days"


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK, length=2)


def _dates(axis: Any) -> None:
    locator = mdates.AutoDateLocator(maxticks=8)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
