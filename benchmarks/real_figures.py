"""Figures of benchmarks/real.py out of its runs' folders: whatever has been measured by now."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_recipe import NAME
from nanoalign.common.intervals import Estimate, mean
from nanoalign.report.figures import difference, pooled, spearman

DRAWS = 1000
"""Of bootstraps over tasks."""


def collect(folder: Path, jobs: Sequence[Any]) -> dict[str, Any]:
    """``figures`` (each with its interval and n, and by seed), and tables: ``by_family``, ``budgets``, ``enforcement``,
    ``shares``, ``effort``, ``dpo``, ``merge``, ``stages``."""
    found: dict[str, Any] = {"figures": {}, "stages": _stages(folder, jobs)}
    for part in (_taught, _merge, _dpo, _enforced, _shares, _effort):
        try:
            _join(found, part(folder))
        except Exception as error:  # a half-written or surprising file costs its part, not the others
            found.setdefault("not_collected", {})[part.__name__] = f"{type(error).__name__}: {error}"
    return found


def _join(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        found[key] = found.get(key, {}) | value


def _stages(folder: Path, jobs: Sequence[Any]) -> dict[str, Any]:
    """Figures and seconds of every stage that a job made."""
    made = {}
    for job in jobs:
        for stage in job.until:
            for each in {"tools": ("foundation", "tools")}.get(stage, (stage,)):
                record = _read(folder / job.name / NAME / each / "stage.json")
                if record and record["status"] == "finished":
                    kept = {
                        k: v for k, v in record["figures"].items() if not isinstance(v, dict) or set(v) >= {"value"}
                    }
                    made[f"{job.name}.{each}"] = {"wall_s": round(record["wall_s"]), **kept}
    return made


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _checkpoint(folder: Path, job: str, stage: str, name: str) -> dict[str, Any] | None:
    report = _read(folder / job / NAME / stage / "evaluation.json")
    return report["checkpoints"].get(name) if report else None


def _scores(folder: Path, job: str, stage: str, name: str, mode: str, suite: str = "reasoning") -> dict[str, float]:
    """Task to score."""
    path = folder / job / NAME / stage / "records" / name / f"{suite}.{mode}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["task"]: float(row["score"]) for row in rows}


def _paired(after: Mapping[str, float], before: Mapping[str, float]) -> Estimate:
    """The gain in points over the same tasks."""
    return mean([100 * (after[task] - before[task]) for task in after if task in before])


def _both(by_seed: Mapping[str, Estimate]) -> dict[str, Any]:
    """Seeds together, and each."""
    return pooled(list(by_seed.values())).as_dict() | {
        "seeds": {seed: each.as_dict() for seed, each in by_seed.items()}
    }


def _points(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    points = checkpoint["budget_curve"]["points"]
    return sorted(points, key=lambda point: math.inf if point["budget"] is None else point["budget"])


def _tight(points: Sequence[Mapping[str, Any]], budgets: set[int] | None = None) -> list[Mapping[str, Any]]:
    """The points under budgets that cut at least half of the traces, or under these budgets."""
    limited = [point for point in points if point["budget"] is not None]
    if budgets is None:
        return [point for point in limited if point["cut"]["value"] >= 0.5]
    return [point for point in limited if point["budget"] in budgets]


def _modes(checkpoint: Mapping[str, Any]) -> list[str]:
    """The curve's, as files of records are named."""
    return ["think" if point["budget"] is None else f"think@{point['budget']}" for point in _points(checkpoint)]


def _pooled(points: Sequence[Mapping[str, Any]], figure: str) -> Estimate:
    return pooled([Estimate(**point[figure]) for point in points if figure in point])


def _taught(folder: Path) -> dict[str, Any]:
    """Thinking over /no_think, accuracy against budget, and what stage 3 changed; by seed."""
    parts: dict[str, dict[str, Estimate]] = {}
    tables: dict[str, Any] = {"by_family": {}, "budgets": {}}
    for seed in ("17", "18", "19"):
        job = f"taught{seed}"
        before, after = (_checkpoint(folder, job, "taught", name) for name in ("tools", "refine"))
        if before:
            tables["budgets"][f"tools, seed {seed}"] = curve_table(before)
        if not after or not before:
            continue
        tables["budgets"][f"refine, seed {seed}"] = curve_table(after)
        on, off = (_scores(folder, job, "taught", "refine", mode) for mode in ("think", "no_think"))
        modes = after["suites"]["reasoning"]
        tables["by_family"][f"seed {seed}"] = {
            family: {mode: modes[mode]["by_domain"][family] for mode in ("on", "off")}
            for family in modes["on"]["by_domain"]
        }
        tight = _tight(_points(after))
        earlier = _tight(_points(before), {int(point["budget"]) for point in tight})
        found = {
            "real.thinking_gain_points": _paired(on, off),
            "real.budget_spearman": _budget_spearman(folder, job, after),
            "real.compensation_before": _pooled(earlier, "compensation"),
            "real.compensation_after": _pooled(tight, "compensation"),
            "real.well_formed_before": _pooled(earlier, "well_formed"),
            "real.well_formed_after": _pooled(tight, "well_formed"),
            "real.obedience": Estimate(**after["figures"]["refine.obedience"]),
            "real.gsm8k_thinking_gain_points": _paired(
                *(_scores(folder, job, "taught", "refine", mode, "gsm8k") for mode in ("think", "no_think"))
            ),
        }
        for name, each in found.items():
            parts.setdefault(name, {})[seed] = each
    return {"figures": {name: _both(each) for name, each in parts.items()}, **tables}


def _budget_spearman(folder: Path, job: str, checkpoint: Mapping[str, Any]) -> Estimate:
    """Rank correlation of budget and accuracy, its interval by a bootstrap over tasks."""
    modes = _modes(checkpoint)
    scores = [_scores(folder, job, "taught", "refine", mode) for mode in modes]
    tasks = list(scores[0])
    rng, places = random.Random(0), list(range(len(modes)))

    def of(drawn: Sequence[str]) -> float:
        return spearman(places, [math.fsum(each[task] for task in drawn) for each in scores])

    draws = sorted(of(rng.choices(tasks, k=len(tasks))) for _ in range(DRAWS))
    return Estimate(of(tasks), draws[int(0.025 * DRAWS)], draws[int(0.975 * DRAWS)], len(tasks))


def curve_table(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy, form and length under each budget."""
    rows = [_row(point, "none" if point["budget"] is None else point["budget"]) for point in _points(checkpoint)]
    return [*rows, _row(checkpoint["budget_curve"]["off"], "no_think")]


def _row(point: Mapping[str, Any], budget: Any) -> dict[str, Any]:
    names = ("score", "well_formed", "compensation", "leakage", "cut", "closed", "thinking_tokens", "answer_tokens",
             "overshoot", "overshoot_max", "obedience")  # fmt: skip
    return {"budget": budget} | {name: point[name] for name in names if name in point}


def _merge(folder: Path) -> dict[str, Any]:
    """The sweep, and how much the chosen alpha is better than the better end, on tasks that did not choose it."""
    sweep = _read(folder / "merged17" / NAME / "merged" / "sweep.json")
    if not sweep:
        return {}
    result: dict[str, Any] = {"merge": {key: sweep[key] for key in ("chosen", "front", "points")}}
    ends = {name: _checkpoint(folder, "verdict17", "verdict", name) for name in ("workplace", "chat", "merged")}
    if all(ends.values()):
        sums = {}
        for name, each in ends.items():
            both = [Estimate(**each["suites"][suite]["on"]["score"]) for suite in ("reasoning", "chat")]  # type: ignore[index]
            half = [
                math.hypot(*(one.value - one.low for one in both)) / 2,
                math.hypot(*(one.high - one.value for one in both)) / 2,
            ]
            middle = sum(one.value for one in both) / 2
            sums[name] = Estimate(middle, middle - half[0], middle + half[1], min(one.n for one in both))
        best = max(("workplace", "chat"), key=lambda name: sums[name].value)
        result["merge"]["verdict"] = {
            name: {suite: each["suites"][suite]["on"]["score"] for suite in each["suites"]}  # type: ignore[index]
            for name, each in ends.items()
        }
        result["merge"]["mean_of_reasoning_and_chat"] = {name: each.as_dict() for name, each in sums.items()}
        result["figures"] = {
            "real.alpha_best_gain": difference(sums["merged"], sums[best], 100).as_dict() | {"over": best}
        }
    return result


def _dpo(folder: Path) -> dict[str, Any]:
    """Held-out success by round, and the gain from before the first to after the last, over the same tasks."""
    tables, gains, sampled = {}, {}, {}
    for job in ("workplace17", "workplace18", "bare17"):
        paths = sorted(
            (folder / job / NAME / "workplace").glob("round-*/round.json"), key=lambda path: int(path.parent.name[6:])
        )
        rounds = [_read(path) for path in paths]
        if not rounds:
            continue
        kept = ("round", "held_out", "held_out_sampled", "sampled", "tasks", "pairs", "tasks_with_pairs", "changed")
        tables[job] = [{key: each[key] for key in kept if key in each} for each in rounds]
        if len(rounds) > 1 and job != "bare17":
            for name, into in (("held_out_by_task", gains), ("held_out_sampled_by_task", sampled)):
                pairs = zip(rounds[-1][name], rounds[0][name], strict=True)
                into[f"{job[-2:]}, {len(rounds) - 1} rounds"] = mean([100 * (last - first) for last, first in pairs])
    figures = {"dpo.workbench_gain_points": gains, "dpo.workbench_sampled_gain_points": sampled}
    return {"dpo": tables, "figures": {name: _both(each) for name, each in figures.items() if each}}


def _enforced(folder: Path) -> dict[str, Any]:
    """The budget rule, a hard cut and no enforcement at equal budgets."""
    tables = {}
    for stage in ("refine", "tools"):
        path = folder / f"enforced_{stage}.out"
        text = path.read_text(errors="replace") if path.is_file() else ""
        if (start := f"\n{text}".find("\n{\n")) >= 0:  # a vLLM may log before it
            curve = json.loads(text[start:])
            rows = [
                _row(point, point["budget"]) | {"kept_by": "rule"}
                for point in curve["points"]
                if point["budget"] is not None
            ]
            rows += [
                _row(point, point["budget"]) | {"kept_by": how}
                for how, each in curve["peers"].items()
                for point in each
            ]
            tables[stage] = sorted(rows, key=lambda row: row["budget"])
    return {"enforcement": tables} if tables else {}


def _shares(folder: Path) -> dict[str, Any]:
    """What each share of truncated traces teaches, over the budgets that are tight with the largest."""
    found = {
        name: _checkpoint(folder, "shares", "shares", name) for name in ("refine_0", "refine_1", "refine_5", "refine")
    }
    whole = {name: each for name, each in found.items() if each}
    if "refine_0" not in whole:
        return {}
    budgets = {int(point["budget"]) for point in _tight(_points(next(reversed(whole.values()))))}
    rows = {}
    for name, each in whole.items():
        tight = _tight(_points(each), budgets)
        figures = ("well_formed", "compensation", "leakage", "score")
        rows[name] = {figure: _pooled(tight, figure).as_dict() for figure in figures}
        rows[name] |= {mode: each["suites"]["reasoning"][mode]["score"] for mode in ("on", "off")}
        rows[name]["curve"] = curve_table(each)
    return {"shares": rows}


def _effort(folder: Path) -> dict[str, Any]:
    """GRPO that is rewarded within budgets against GRPO that is not, and the model that both began from."""
    names = ("refine", "plain", "aware")
    found = {name: _checkpoint(folder, "effort", "effort", name) for name in names}
    rows: dict[str, Any] = {name: {"curve": curve_table(each)} for name, each in found.items() if each}
    if all(found.values()):
        rows["aware_over_plain_points"] = {
            mode: _paired(*(_scores(folder, "effort", "effort", name, mode) for name in ("aware", "plain"))).as_dict()
            for mode in _modes(found["aware"])
        }
    return {"effort": rows} if rows else {}


def table(report: Mapping[str, Any]) -> str:
    """What came out, for the screen."""
    lines = [f"{report['seconds']} s on GPUs {', '.join(report['gpus'])}"]
    lines += [f"  {name:20} {each['status']:9} {each.get('seconds', '')}" for name, each in report["jobs"].items()]
    lines += [f"{name:40} {_shown(each)}" for name, each in report["figures"].items()]
    for title in ("budgets", "enforcement", "effort"):
        for name, rows in report.get(title, {}).items():
            rows = rows.get("curve", []) if isinstance(rows, dict) else rows
            lines += [f"{title}: {name}"] * bool(rows)
            lines += ["  " + "  ".join(f"{key} {_shown(value)}" for key, value in row.items()) for row in rows]
    for name, row in report.get("shares", {}).items():
        lines.append(
            f"shares: {name}  " + "  ".join(f"{key} {_shown(value)}" for key, value in row.items() if key != "curve")
        )
    for name, rounds in report.get("dpo", {}).items():
        lines += [
            f"dpo: {name}  " + "  ".join(f"{key} {_shown(value)}" for key, value in each.items()) for each in rounds
        ]
    for point in report.get("merge", {}).get("points", []):
        lines.append(
            f"alpha {point['alpha']}: " + "  ".join(f"{key} {_shown(value)}" for key, value in point["scores"].items())
        )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and value.get("value", "") is None:
        return f"none (n {value['n']})"
    if isinstance(value, Mapping) and "value" in value:
        return f"{value['value']:.3g} ({value['low']:.3g} to {value['high']:.3g}, n {value['n']})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
