"""Collects recipes/isolation-ablation.yaml's runs: means, paired differences with 95% t intervals, and a picture.

    python benchmarks/packing_ablation.py --runs runs --json docs/results/isolation.json [--plot FILE.svg]

Reads ``RUNS/WAY-SEED`` for each way of WAYS and each seed; a way without runs keeps the figures that the JSON file
has. Everything else in the file stays as it is.
"""

import argparse
import json
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

from nanoalign.common.files import write_json

WAYS = {"alone": "alone", "mixed": "mixed packs", "isolated": "best-fit packs", "plain": "best-fit packs, plain"}
SUITES = ("calls", "reasoning", "instruction")
FIGURES = [f"{suite}.{mode}" for suite in SUITES for mode in ("on", "off")] + ["held_out_loss_last"]
TRAINING = ("held_out_loss_last", "steps", "tokens", "fill")
SEEDS = range(17, 22)


def of_run(folder: Path) -> dict[str, float]:
    """The figures of one run."""
    trained, measured = (
        json.loads((folder / stage / "result.json").read_text())["figures"] for stage in ("foundation", "isolation")
    )
    found = {name: measured[f"foundation.{name}"]["value"] for name in FIGURES if name not in TRAINING}
    return found | {name: trained[name] for name in TRAINING}


def read(runs: Path, before: dict[str, Any]) -> dict[str, dict[int, dict[str, float]]]:
    """way -> seed -> figure -> value, of the runs that are there, else of an earlier file's figures."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for way in WAYS:
        for seed in SEEDS:
            start = f"seed_{seed}.{way}."
            known = {name.removeprefix(start): value for name, value in before.items() if name.startswith(start)}
            if (runs / f"{way}-{seed}" / "isolation" / "result.json").is_file():
                known = of_run(runs / f"{way}-{seed}")
            if known:
                found.setdefault(way, {})[seed] = known
    return found


def paired(ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]], name: str) -> dict[str, Any]:
    """The mean over seeds of a figure's difference, with its t interval."""
    from scipy.stats import t

    gaps = [ours[seed][name] - theirs[seed][name] for seed in ours.keys() & theirs.keys()]
    centre, deviation = statistics.fmean(gaps), statistics.stdev(gaps)
    half = float(t.ppf(0.975, len(gaps) - 1)) * deviation / len(gaps) ** 0.5
    return {"value": centre, "low": centre - half, "high": centre + half, "n": len(gaps), "sd": deviation,
            "positive_seeds": sum(gap > 0 for gap in gaps)}  # fmt: skip


def figures(found: dict[str, dict[int, dict[str, float]]]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for way, seeds in found.items():
        for name in sorted({name for each in seeds.values() for name in each}):
            values = [each[name] for each in seeds.values() if name in each]
            if len(values) > 1:
                flat |= {f"{way}.{name}.mean": statistics.fmean(values), f"{way}.{name}.sd": statistics.stdev(values)}
    for ours, theirs in combinations(found, 2):
        for name in FIGURES:
            gap = paired(found[ours], found[theirs], name)
            start = f"{ours}_minus_{theirs}.{name}"
            flat |= {f"{start}.{part}": gap.pop(part) for part in ("sd", "positive_seeds")} | {start: gap}
    flat |= {
        f"seed_{seed}.{way}.{name}": value
        for way, seeds in found.items() for seed, each in seeds.items() for name, value in each.items()
    }  # fmt: skip
    if "mixed" in found:
        gap = paired(found["alone"], found["mixed"], "calls.on")
        flat["isolation.tools_gap_points"] = {part: 100 * gap[part] for part in ("value", "low", "high")} | {
            "n": gap["n"]
        }
    return {name: _rounded(value) for name, value in flat.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def plot(found: dict[str, dict[int, dict[str, float]]], file: Path) -> None:
    """Every seed's accuracy with thinking, way by way."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "isolation"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(9.2, 3.2), sharey=True)
    for axis, suite in zip(axes, SUITES, strict=True):
        for seed in SEEDS:
            axis.plot(
                [100 * found[way][seed][f"{suite}.on"] for way in found], "o-", ms=3, lw=0.8, label=f"seed {seed}"
            )
        axis.set_xticks(range(len(found)), [WAYS[way].replace(" ", "\n", 1) for way in found], fontsize=7)
        axis.set_title({"calls": "tool calls", "instruction": "instructions"}.get(suite, suite), fontsize=9)
        axis.margins(x=0.15)
    axes[0].set_ylabel("solved, %", fontsize=8)
    axes[-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    kept = json.loads(options.json.read_text()) if options.json.exists() else {"figures": {}}
    found = read(options.runs, kept["figures"])
    new = figures(found)
    write_json(options.json, kept | {"figures": kept["figures"] | new})
    for way in found:
        print(f"{way:10}", *(f"{name} {100 * new[f'{way}.{name}.mean']:.1f}" for name in FIGURES[:-1]), sep="  ")
    for name, value in new.items():
        if isinstance(value, dict) and ".on" in name:
            print(f"{name:40} {100 * value['value']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})")
    if "isolation.tools_gap_points" in new:
        print("isolation.tools_gap_points", new["isolation.tools_gap_points"])
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
