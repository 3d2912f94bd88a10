"""The report's pictures, by matplotlib, as SVG text for embedding in a page (or as files for README.md)."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
COLOURS = ("#2f6fb0", "#d1622b", "#3c8d5a", "#8a5bb0", "#b8902c", "#c2476b", "#4d9aa8", "#7a6a5a")
KIND_COLOURS = {
    "sft": COLOURS[0],
    "distill": COLOURS[5],
    "pretrain": COLOURS[7],
    "dpo": COLOURS[2],
    "grpo": COLOURS[1],
    "reward_model": COLOURS[4],
    "merge": COLOURS[3],
    "evaluate": COLOURS[6],
    "compress": COLOURS[5],
}

Point = tuple[float, float, float, float]
"""x, y and y's interval."""


def use_style() -> None:
    """Fonts and reproducible SVG, for every figure drawn from now on."""
    from matplotlib import rcParams

    rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "nanoalign",
            "font.family": "sans-serif",
            "font.sans-serif": ["Inter", "Helvetica", "Arial", "DejaVu Sans"],
        }
    )


def _figure(width: float = 6.2, height: float = 3.2) -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure

    use_style()
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=10)
    axes.set_ylabel(y, color=INK, fontsize=10)


def svg(figure: "Figure") -> str:
    """The figure as an ``<svg>`` element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: "Figure", path: Path) -> None:
    """The figure as a PNG file on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> "Figure":
    """Curves by name, e.g. loss against steps; where there are many points a running mean is drawn over them."""
    figure, axes = _figure()
    for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        smooth = _running_mean(ys, max(1, len(ys) // 15))
        if len(ys) > 15:
            axes.plot(xs, ys, color=colour, alpha=0.25, linewidth=1)
        axes.plot(xs, smooth, color=colour, linewidth=2, label=name, marker="o" if len(ys) < 6 else None)
    _label(axes, x, y)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    return [sum(values[max(0, i - width + 1) : i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]


def intervals(
    series: Mapping[str, Sequence[Point]],
    x: str,
    y: str,
    ticks: Sequence[str] | None = None,
    marks: Mapping[str, float] | None = None,
) -> "Figure":
    """Curves with 95% intervals as bands. ``ticks`` names the x positions 0, 1, ...; ``marks`` are vertical lines."""
    figure, axes = _figure()
    for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
        xs = [point[0] for point in points]
        axes.plot(xs, [point[1] for point in points], color=colour, linewidth=2, marker="o", markersize=4, label=name)
        axes.fill_between(xs, [p[2] for p in points], [p[3] for p in points], color=colour, alpha=0.12, linewidth=0)
    for name, at in (marks or {}).items():
        axes.axvline(at, color=MUTED, linewidth=1, linestyle="--")
        axes.annotate(
            name,
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -10),
            textcoords="offset points",
            color=MUTED,
            fontsize=9,
        )
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), ticks)
    _label(axes, x, y)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def front(points: Sequence[tuple[str, Point, Point]], chosen: str, x: str, y: str) -> "Figure":
    """Two scores against each other, one dot per point (name, first score, second score), the chosen one ringed."""
    figure, axes = _figure(5.0, 3.6)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    for name, (_, first, low, high), (_, second, down, up) in points:
        axes.errorbar(
            first,
            second,
            xerr=[[max(0.0, first - low)], [max(0.0, high - first)]],  # an end may be off by rounding
            yerr=[[max(0.0, second - down)], [max(0.0, up - second)]],
            fmt="o",
            color=COLOURS[0],
            ecolor=MUTED,
            elinewidth=0.8,
            markersize=5,
        )
        axes.annotate(name, (first, second), xytext=(5, 4), textcoords="offset points", color=INK, fontsize=9)
        if name == chosen:
            axes.plot(
                first, second, "o", markersize=13, markerfacecolor="none", markeredgecolor=COLOURS[1], markeredgewidth=2
            )
    _label(axes, x, y)
    return figure
