"""What a section of the report is made of."""

from collections.abc import Sequence
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
