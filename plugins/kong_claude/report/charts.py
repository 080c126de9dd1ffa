"""Figures of a report (matplotlib, no display)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as mdates
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, BLUE, RED, GREEN = "#1f2933", "#2f6db5", "#c8443c", "#3a8f5c"


def trends(
    document: dict[str, Any], size: tuple[float, float], place: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> Figure:
    """Requests, refusals and cost over time, at `place` (left, bottom, width, height). Long spans are shown by day."""
    step = 3600 if document["until"] - document["since"] <= 14 * 86400 else 86400
    summed: dict[int, list[float]] = {}
    for at, counts in document["hours"].items():
        slot = summed.setdefault(int(at) // step * step, [0.0, 0.0, 0.0])
        for i, value in enumerate(counts):
            slot[i] += value
    if summed:  # hours without a request are zeros, not gaps
        for at in range(min(summed), max(summed) + step, step):
            summed.setdefault(at, [0.0, 0.0, 0.0])
    times = [datetime.fromtimestamp(at, UTC) for at in sorted(summed)]
    rows = [summed[at] for at in sorted(summed)]
    unit = "hour" if step == 3600 else "day"
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=place))
    axes = figure.subplots(3, 1, sharex=True)
    wanted = ((0, f"Requests per {unit}", BLUE), (1, f"Refusals per {unit}", RED), (2, f"Cost per {unit}, USD", GREEN))
    for axis, (column, title, colour) in zip(axes, wanted, strict=True):
        values = [row[column] for row in rows]
        axis.fill_between(times, values, step="mid", color=colour, alpha=0.2, linewidth=0)
        axis.step(times, values, where="mid", color=colour, linewidth=1.2)
        axis.set_title(title, loc="left", fontsize=10, color=INK)
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK, length=2)
    locator = mdates.AutoDateLocator(maxticks=8)  # type: ignore[no-untyped-call]
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    return figure
