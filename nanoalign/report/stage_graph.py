"""The stage graph as a picture: boxes in columns, left to right, and arrows that go around the boxes of other stages.

An arrow over several columns gets a lane in each column between, as if it were a narrow box there. Within a column it
runs straight along its lane, and bends between columns, where there are no boxes: so it crosses none. Arrows from one
stage share their lanes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nanoalign.report.plots import GRID, INK, KIND_COLOURS, MUTED, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALE = 0.4
"""Opacity of what is still to come."""
FAILED = "#b5452c"
BOX, LANE, GAP = 0.46, 0.16, 0.62
"""Inches: a box's height, a lane's, and the space between two columns. Boxes and lanes are MARGIN apart."""
MARGIN = 0.14
ROUND = 0.06
"""Inches: the radius of a box's corners."""
CHARACTER = 0.082
"""Inches a character of a box's text, at most."""
SWEEPS = 8
"""Passes in which columns are sorted by where their neighbours are."""

Place = tuple[str, int]
"""A stage in its column, or its lane in a later one."""


@dataclass(frozen=True)
class Layout:
    """Positions in inches, y upwards."""

    centres: dict[Place, tuple[float, float]]
    """Of boxes and lanes."""
    widths: list[float]
    """Of the columns."""
    routes: dict[tuple[str, str], list[Place]]
    """Source and target to the places that the arrow passes, both ends among them."""
    columns: dict[str, int]
    size: tuple[float, float]


def layout(kinds: Mapping[str, str], inputs: Mapping[str, Sequence[str]]) -> Layout:
    """Where everything is. ``kinds`` holds the stages in the recipe's order, ``inputs`` what each one takes."""
    columns = _columns(kinds, inputs)
    routes: dict[tuple[str, str], list[Place]] = {}
    for target, sources in inputs.items():
        for source in sources:
            lanes = [(source, column) for column in range(columns[source], columns[target])]
            routes[source, target] = [*lanes, (target, columns[target])]
    rows: list[list[Place]] = [[] for _ in range(max(columns.values()) + 1)]
    for place in dict.fromkeys([*columns.items(), *(place for route in routes.values() for place in route)]):
        rows[place[1]].append(place)
    _untangle(rows, routes)
    widths = [max(_width(name, kinds) for name, own in columns.items() if own == column) for column in range(len(rows))]
    heights = [[BOX if columns[name] == column else LANE for name, _ in row] for column, row in enumerate(rows)]
    tallest = max(sum(own) + MARGIN * (len(own) + 1) for own in heights)
    centres: dict[Place, tuple[float, float]] = {}
    left = MARGIN
    for row, own, width in zip(rows, heights, widths, strict=True):
        top = tallest / 2 + (sum(own) + MARGIN * (len(own) - 1)) / 2
        for place, height in zip(row, own, strict=True):
            centres[place] = (left + width / 2, top - height / 2)
            top -= height + MARGIN
        left += width + GAP
    return Layout(centres, widths, routes, columns, (left - GAP + MARGIN, tallest))


def _columns(kinds: Mapping[str, str], inputs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Each stage one column behind the last of its inputs; what has none (the base model) in the first."""
    columns: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in columns:
            columns[name] = 1 + max((place(source) for source in inputs.get(name, ())), default=-1)
        return columns[name]

    for name in kinds:
        place(name)
    return columns


def _untangle(rows: list[list[Place]], routes: Mapping[tuple[str, str], Sequence[Place]]) -> None:
    """Sorts every column by the mean height of its neighbours, in place, forth and back."""
    links: dict[Place, set[Place]] = {}
    for route in routes.values():
        for one, other in pairwise(route):
            links.setdefault(one, set()).add(other)
            links.setdefault(other, set()).add(one)
    for sweep in range(SWEEPS):
        order = range(1, len(rows)) if sweep % 2 == 0 else range(len(rows) - 2, -1, -1)
        for column in order:
            beside = column - 1 if sweep % 2 == 0 else column + 1
            height = {place: (i + 0.5) / len(rows[beside]) for i, place in enumerate(rows[beside])}
            own = {place: (i + 0.5) / len(rows[column]) for i, place in enumerate(rows[column])}
            mean = {}
            for place in rows[column]:
                near = [height[other] for other in links.get(place, ()) if other in height]
                mean[place] = sum(near) / len(near) if near else own[place]
            rows[column].sort(key=lambda place: (mean[place], own[place]))


def _width(name: str, kinds: Mapping[str, str]) -> float:
    return CHARACTER * max(len(name), len(kinds.get(name, "")), 7) + 0.24


def curve(plan: Layout, route: Sequence[Place]) -> list[tuple[str, list[tuple[float, float]]]]:
    """An arrow's path as ("move" | "line" | "bend", points): straight along lanes, bent between columns."""
    x, y = plan.centres[route[0]]
    steps: list[tuple[str, list[tuple[float, float]]]] = [("move", [(x + plan.widths[route[0][1]] / 2, y)])]
    for before, place in pairwise(route):
        (x, y), width = plan.centres[place], plan.widths[place[1]]
        end = plan.centres[before][0] + plan.widths[before[1]] / 2
        start, height = x - width / 2, plan.centres[before][1]
        middle = (end + start) / 2
        steps.append(("bend", [(middle, height), (middle, y), (start, y)]))
        if place != route[-1]:
            steps.append(("line", [(x + width / 2, y)]))
    return steps


def graph(kinds: Mapping[str, str], inputs: Mapping[str, Sequence[str]], states: Mapping[str, str]) -> "Figure":
    """The picture. ``states`` says finished, failed, stopped, killed or running of the stages that were begun; failed
    ones are red, those that stopped outlined, those still to come pale."""
    from matplotlib.figure import Figure

    use_style()
    plan = layout(kinds, inputs)
    figure = Figure(figsize=plan.size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, plan.size[0])
    axes.set_ylim(0, plan.size[1])
    for (source, target), route in plan.routes.items():
        _arrow(axes, curve(plan, route), f"{source} -> {target}")
    for name, column in plan.columns.items():
        _box(axes, plan.centres[name, column], plan.widths[column], name, kinds.get(name, ""), states.get(name, ""))
    return figure


def _arrow(axes: Any, steps: Sequence[tuple[str, list[tuple[float, float]]]], label: str) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    codes = {"move": Path.MOVETO, "line": Path.LINETO, "bend": Path.CURVE4}
    points = [point for _, own in steps for point in own]
    path = Path(points, [codes[kind] for kind, own in steps for _ in own])
    axes.add_patch(
        FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=9, color=MUTED, linewidth=1, label=label)
    )


def _box(axes: Any, centre: tuple[float, float], width: float, name: str, kind: str, state: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    colour = FAILED if state == "failed" else KIND_COLOURS.get(kind, GRID)
    outlined = state in ("stopped", "killed", "running")
    pale = bool(kind) and not state
    x, y = centre
    box = FancyBboxPatch((x - width / 2 + ROUND, y - BOX / 2 + ROUND), width - 2 * ROUND, BOX - 2 * ROUND, label=name,
                         boxstyle=f"round,pad={ROUND}", facecolor="white" if outlined else colour, linewidth=2,
                         edgecolor=colour if outlined else "none", alpha=PALE if pale else 1.0)  # fmt: skip
    axes.add_patch(box)
    told = kind.replace("_", " ") if state in ("", "finished") else state
    style = {"color": INK if not kind else colour if outlined else "white", "ha": "center", "va": "center"}
    text = f"{name}\n{told}" if kind else name
    axes.text(x, y, text, fontsize=8.5, fontweight="bold" if state == "failed" else "normal", **style)
