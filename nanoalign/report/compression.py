"""The report's section of a compression: the order of removal, and the candidates."""

from collections.abc import Iterator, Mapping
from typing import Any

from nanoalign.common.printable import counted
from nanoalign.plan_compress import COLUMNS
from nanoalign.report import plots
from nanoalign.report.parts import Cell, Plot, ReportSection, Table
from nanoalign.report.read import RunData

SHOWN = 12
"""Candidates in the table."""


def compressions(run: RunData) -> Iterator[ReportSection]:
    """One section for each compress stage."""
    for name, stage in run.of_kind("compress").items():
        found = stage.result
        budget, whole = found["budget"], found["whole"]
        fit = counted(found["within_budget"], "shape", "fits", "fit")
        note = (
            f"{name}: {fit} {budget['gib']:g} GiB at {budget['context']:,} tokens. "
            f"Those with the least loss as pruned, on {found['calibration']['held_out_rows']} held-out rows, were "
            "compared; the chosen one is tinted."
        )
        curve = {_depth(removal): _curve(removal) for removal in _longest(found["removals"])}
        drawn = [Plot("Error against blocks removed", plots.lines(curve, "blocks removed", "MSE of the logits"),
                      f"{name}_depth")] if any(curve.values()) else []  # fmt: skip
        yield ReportSection("Compression", note, plots=drawn, tables=[_candidates(found, whole), *_removals(found)])


def _longest(removals: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of the depths that leave the same kinds of blocks, the one that removes most."""
    groups: dict[tuple[Any, Any], dict[str, Any]] = {}
    for removal in removals:
        key = removal["attention"], removal["mamba"]
        if key not in groups or len(removal["steps"]) > len(groups[key]["steps"]):
            groups[key] = removal
    yield from groups.values()


def _depth(removal: Mapping[str, Any]) -> str:
    kinds = [f"{removal[kind]} {kind}" for kind in ("attention", "mamba") if removal[kind] is not None]
    return f"to {removal['blocks']} blocks" + (f", {', '.join(kinds)}" if kinds else "")


def _curve(removal: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(number, step["error"]) for number, step in enumerate(removal["steps"], 1)]


def _removals(found: Mapping[str, Any]) -> Iterator[Table]:
    """Which block went in each step, and what the next best would have cost."""
    for removal in _longest(found["removals"]):
        if removal["steps"]:
            rows = []
            for number, step in enumerate(removal["steps"], 1):
                others = sorted(error for block, error in step["candidates"].items() if int(block) != step["block"])
                rows.append([
                    Cell(str(number)), Cell(str(step["block"]), step["kind"]), Cell(f"{step['error']:.4g}"),
                    Cell(f"{others[0]:.4g}" if others else ""), Cell(f"{others[-1]:.4g}" if others else ""),
                ])  # fmt: skip
            head = ["step", "block removed", "MSE without it", "next best", "worst"]
            yield Table(f"Order of removal, {_depth(removal)}", head, rows)


def _candidates(found: Mapping[str, Any], whole: Mapping[str, Any]) -> Table:
    measured = sorted((row for row in found["candidates"] if "loss" in row), key=lambda row: row["loss"])
    measured.sort(key=lambda row: "finalist" not in row)
    shown = measured[:SHOWN]
    sizes = [key for key in COLUMNS if len({row.get(key) for row in shown}) > 1]
    more = {
        "loss": "loss as pruned", "distilled_kl": "KL, distilled", "distilled_loss": "loss, distilled",
        "accuracy": "accuracy", "measured_tokens_per_s": "tokens/s, vLLM",
    }  # fmt: skip
    columns = [key for key in more if any(key in row for row in shown)]
    head = [
        "",
        *(COLUMNS[key] for key in sizes),
        "parameters",
        "GiB",
        "tokens/s, modelled",
        *(more[k] for k in columns),
    ]
    rows = [[Cell("whole"), *(Cell("") for _ in sizes), *_sizes(whole), *_measures(whole, columns)]]
    for row in shown:
        best = row["name"] == found["chosen"]
        own = [Cell("chosen" if best else "")]
        own += [Cell("" if row.get(key) is None else f"{row[key]:,}") for key in sizes]
        own += [*_sizes(row), *_measures(row, columns)]
        rows.append([Cell(cell.text, cell.small, best) for cell in own])
    return Table("Candidates: finalists first, then by loss", head, rows)


def _sizes(row: Mapping[str, Any]) -> list[Cell]:
    parameters = f"{row['parameters'] / 1e9:.2f}B" if row["parameters"] >= 1e9 else f"{row['parameters'] / 1e6:.2f}M"
    return [Cell(parameters), Cell(f"{row['memory_gib']:.4g}"), Cell(f"{row['tokens_per_s']:,.0f}")]


def _measures(row: Mapping[str, Any], columns: list[str]) -> Iterator[Cell]:
    for key in columns:
        value = row.get(key)
        if value is None:
            yield Cell("")
        elif key == "accuracy":
            yield Cell(f"{100 * value['value']:.1f}", f"{100 * value['low']:.0f}–{100 * value['high']:.0f}")
        else:
            yield Cell(f"{value:,.0f}" if key == "measured_tokens_per_s" else f"{value:.4f}")
