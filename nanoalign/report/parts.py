"""What the report's sections are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanoalign.report import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    title: str
    figure: "Figure"
    name: str
    """The file name under which README.md's pictures are kept."""

    @property
    def svg(self) -> str:
        return plots.svg(self.figure)


@dataclass(frozen=True)
class Cell:
    text: str
    small: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class ReportSection:
    title: str
    note: str = ""
    plots: Sequence[Plot] = field(default=())
    tables: Sequence[Table] = field(default=())


def score_cell(score: Mapping[str, float]) -> Cell:
    """A score with its interval: a share in percent, anything else as it is."""
    judged = not 0 <= score["value"] <= 1
    text = f"{score['value']:.2f}" if judged else f"{100 * score['value']:.1f}"
    return Cell(text, interval(score, 1 if judged else 100))


def interval(estimate: Mapping[str, float], scale: float = 100.0) -> str:
    """An interval and the number of samples."""
    return f"{scale * estimate['low']:.0f}–{scale * estimate['high']:.0f}, n {estimate['n']:.0f}"
