"""Of benchmarks: scores under budgets, pass@k and further figures, and what was found in the training data."""

from collections.abc import Iterator, Mapping
from typing import Any

from nanoalign.report import plots
from nanoalign.report.parts import Cell, Plot, Table, score_cell
from nanoalign.report.read import StageData


def tables(stage: StageData) -> Iterator[Table]:
    """A table for each suite with more than one score, and one of contamination."""
    checkpoints = stage.result["checkpoints"]
    for suite in next(iter(checkpoints.values()))["suites"]:
        rows = {name: dict(_more(each["suites"][suite])) for name, each in checkpoints.items()}
        head = list(dict.fromkeys(figure for row in rows.values() for figure in row))
        if head:
            cells = [[Cell(name), *(score_cell(row[f]) if f in row else Cell("") for f in head)]
                     for name, row in rows.items()]  # fmt: skip
            yield Table(f"{suite}: further figures", ["checkpoint", *head], cells)
    if found := stage.result.get("contamination"):
        yield _contamination(found)


def _more(suite: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    for budget, result in suite.get("budgets", {}).items():
        yield f"budget {budget}", result["score"]
    for mode, title in (("on", ""), ("off", ", /no_think")):
        for k, estimate in suite[mode].get("pass_at", {}).items():
            yield f"pass@{k}{title}", estimate
        for figure, estimate in suite[mode].get("more", {}).items():
            yield f"{figure}{title}", estimate
    if "clean" in suite:
        yield "without tasks seen in training", suite["clean"]


def _contamination(found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [Cell(suite), Cell(f"{each['met']} of {each['tasks']}"),
         Cell(", ".join(f"{source} ({count})" for source, count in each["sources"].items()))]
        for suite, each in found.items()
    ]  # fmt: skip
    return Table("Tasks met in the training data, by 13 words in a row", ["suite", "tasks", "sources (samples)"], rows)


def curves(stage: StageData) -> list[Plot]:
    """Score against thinking budget, for each suite that was measured under several."""
    checkpoints, found = stage.result["checkpoints"], []
    for suite, first in next(iter(checkpoints.values()))["suites"].items():
        budgets = sorted(first.get("budgets", {}), key=int)
        if len(budgets) > 1:
            series = {
                name: [
                    (place, *(100 * result["score"][part] for part in ("value", "low", "high")))
                    for place, result in enumerate(
                        [*(each["suites"][suite]["budgets"][budget] for budget in budgets), each["suites"][suite]["on"]]
                    )
                ]
                for name, each in checkpoints.items()
            }
            figure = plots.intervals(series, "thinking budget, tokens", "score, %", [*budgets, "∞"])
            found.append(Plot(suite, figure, f"suite_{suite}"))
    return found
