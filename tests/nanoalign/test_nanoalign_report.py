"""The report: figures that are what they say, and a page that holds everything it needs."""

import json
import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.stats import Estimate, proportion
from nanoalign.artifacts import StageRecord, write_record
from nanoalign.recipe.load import dump, load
from nanoalign.report import note_rerun, write, write_pictures
from nanoalign.report.figures import difference, flat, pooled, spearman
from nanoalign.report.plots import graph
from nanoalign.report.read import read_run
from nanoalign.report.sections import sections


@given(st.permutations(list(range(7))))
def test_spearman_is_the_rank_correlation(order):
    n = len(order)
    squares = sum((i - value) ** 2 for i, value in enumerate(order))
    assert spearman(list(range(n)), order) == pytest.approx(1 - 6 * squares / (n * (n * n - 1)))


def test_spearman_of_a_constant_is_no_number():
    assert math.isnan(spearman([0, 1, 2], [5, 5, 5]))


def test_pooling_and_differences():
    a, b = proportion(30, 40), proportion(10, 60)
    both = pooled([a, b])
    assert (both.value, both.n) == (pytest.approx(0.4), 100)
    gap = difference(a, b, 100)
    assert gap.value == pytest.approx(100 * (30 / 40 - 10 / 60))
    assert gap.low < gap.value < gap.high
    assert difference(a, a).low < 0 < difference(a, a).high


def test_flat_names():
    assert flat("x", {"value": 1.0, "low": 0.5, "high": 1.5, "n": 4}) == {
        "x": 1.0,
        "x.low": 0.5,
        "x.high": 1.5,
        "x.n": 4,
    }
    assert flat("x", {"a": {"b": 2}, "c": None}) == {"x.a.b": 2}


def score(successes: int, n: int = 50) -> dict[str, float]:
    return proportion(successes, n).as_dict()


def point(budget: int | None, right: int, formed: int, longer: float) -> dict[str, object]:
    cut = {} if budget is None else {
        "cut": score(50), "compensation": Estimate(longer, longer - 0.1, longer + 0.1, 50).as_dict()
    }  # fmt: skip
    return {"thinking": True, "budget": budget, "score": score(right), "well_formed": score(formed),
            "thinking_tokens": score(20), **cut}  # fmt: skip


def checkpoint(on: int, off: int, points: list[dict[str, object]]) -> dict[str, object]:
    domains = {"math": score(on), "coding": score(off)}
    each = {"on": {"score": score(on), "by_domain": domains}, "off": {"score": score(off), "by_domain": domains}}
    return {"suites": {"reasoning": each, "instruction": each}, "budget_curve": {"points": points}}


@pytest.fixture
def run_folder(tmp_path):
    """A run of the miniature of which refine and the verdict are finished."""
    recipe = load("recipes/miniature.yaml")
    folder = tmp_path / "miniature"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(recipe))

    def finished(name, kind, inputs, figures):
        place = folder / name
        place.mkdir()
        write_record(place, StageRecord(
            name, kind, "finished", "f", {}, {}, inputs, {}, 1, {"torch": "2.13"}, time.time(), wall_s=10.0,
            peak_rss_gb=1.5, figures=figures,
        ))  # fmt: skip
        return place

    sft = {"loss_first": 2.0, "loss_last": 0.5, "tokens": 1000, "tokens_per_s": 500.0}
    place = finished("refine", "sft", {"from": "tools"}, sft)
    rows = [{"time": 0, "step": step, "total_steps": 30, "loss": 2 / (step + 1)} for step in range(30)]
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sample = {"kind": "sft", "prompt": "<script>alert(1)</script>", "thinking": "hm", "answer": "4"}
    (place / "samples.jsonl").write_text(json.dumps(sample))
    counts = {"documents": 9, "document_tokens": 90, "trained_tokens": 50, "rows": 3}
    (place / "data.json").write_text(json.dumps({**counts, "by_domain": {"math": 9}, "dropped": {"too long": 2}}))
    before = checkpoint(30, 5, [point(8, 10, 30, 3.0), point(None, 30, 50, 1.0)])
    after = checkpoint(40, 10, [point(0, 5, 50, 1.2), point(8, 15, 49, 1.2), point(None, 40, 50, 1.0)])
    place = finished("verdict", "evaluate", {"refine": "refine"}, {"refine.obedience": score(49)})
    evaluation = {"tasks": {"reasoning": 50}, "checkpoints": {"tools": before, "refine": after}}
    (place / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_the_method_s_figures(run_folder):
    write(run_folder)
    figures = json.loads((run_folder / "report.json").read_text())["figures"]
    assert figures["reasoning.thinking_gain_points"] == pytest.approx(60)
    assert figures["reasoning.thinking_gain_points.n"] == 100
    assert figures["reasoning.budget_spearman"] == pytest.approx(1)
    assert figures["budget.well_formed"] == pytest.approx(99 / 100)
    assert figures["budget.compensation_ratio"] == pytest.approx(0.2 / 2.0)
    assert figures["no_think.obedience"] == pytest.approx(0.98)
    assert figures["demo.wall_s"] == 20
    assert figures["refine.loss_last"] == 0.5
    note_rerun(run_folder, 0.4)
    assert json.loads((run_folder / "report.json").read_text())["figures"]["rerun.wall_s"] == 0.4


def test_the_merge_curve_shows_all_that_was_measured(run_folder):
    place = run_folder / "merged"
    place.mkdir()
    measured = {
        alpha: {
            "reasoning": score(50 - alpha),
            "instruction": Estimate(alpha - 2.0, alpha - 2.5, alpha - 1.0, 50).as_dict(),
            "reasoning@32": score(20 + alpha),
        }
        for alpha in range(3)
    }
    sweep = {"reasoning_suite": "reasoning", "chat_suite": "instruction", "choose": "pareto", "chosen": 0.5}
    sweep["points"] = [{"alpha": alpha / 2, "scores": scores} for alpha, scores in measured.items()]
    (place / "sweep.json").write_text(json.dumps(sweep))
    figures = {"merge.alpha": 0.5, "merge.on_pareto": 1.0}
    inputs = {"reasoning": "workplace", "chat": "chat"}
    write_record(
        place, StageRecord("merged", "merge", "finished", "f", {}, {}, inputs, {}, 1, {}, time.time(), figures=figures)
    )
    (section,) = (each for each in sections(read_run(run_folder)) if each.title == "Merge sweep")
    (table,) = section.tables
    assert table.head == ["alpha", "reasoning", "instruction", "reasoning@32"]
    assert [cell.text for cell in table.rows[1]] == ["0.5", "98.0", "-1.00", "42.0"]
    assert [cell.small for cell in table.rows[2]][1:3] == ["87–99, n 50", "-0.50 to 1.00, n 50"]
    assert [row[2].best for row in table.rows] == [False, False, True]
    for label in ("reasoning@32", "chosen", "alpha, the weight of the chat model"):
        assert label in section.plots[0].svg


def test_the_page_is_self_contained_and_escapes_what_models_write(run_folder):
    write(run_folder)
    page = (run_folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="http', page)
    assert "<script>" not in page and "&lt;script&gt;" in page
    for expected in ("Thinking budgets", "Checkpoints", "refine", "too long 2", "<svg"):
        assert expected in page


def test_pictures_are_written(run_folder, tmp_path):
    names = {path.name for path in write_pictures(run_folder, tmp_path / "pictures")}
    assert {"budget_score.png", "budget_well_formed.png", "refine_loss.png"} <= names
    assert all((tmp_path / "pictures" / name).stat().st_size > 5000 for name in names)


def test_the_graph_joins_unfinished_stages_too():
    kinds = {"first": "sft", "second": "dpo", "verdict": "evaluate"}
    inputs = {"first": ["base"], "second": ["first"], "verdict": ["first", "second"]}
    axes = graph(kinds, inputs, {"first"}).axes[0]
    assert sum(text.arrow_patch is not None for text in axes.texts if hasattr(text, "arrow_patch")) == 4
    shown = {text.get_text().split("\n")[0]: text for text in axes.texts if text.get_text()}
    columns = {name: text.get_position()[0] for name, text in shown.items()}
    assert columns["base"] < columns["first"] < columns["second"] < columns["verdict"]
    pale = {name for name, text in shown.items() if text.get_bbox_patch().get_alpha() < 1}
    assert pale == {"second", "verdict"}
