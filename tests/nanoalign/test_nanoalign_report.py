"""The report: figures that are what they say, and a page that holds everything it needs."""

import json
import math
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.artifacts import StageRecord, write_record
from nanoalign.common.errors import ConfigError
from nanoalign.common.files import exclusive_lock
from nanoalign.common.intervals import Estimate, proportion
from nanoalign.recipe.load import dump, load
from nanoalign.report import note_rerun, write_pictures, write_report
from nanoalign.report.figures import difference, flatten, pooled, spearman
from nanoalign.report.read import read_run
from nanoalign.report.sections import sections
from nanoalign.resume import resume_point

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    assert flatten("x", {"value": 1.0, "low": 0.5, "high": 1.5, "n": 4}) == {
        "x": 1.0,
        "x.low": 0.5,
        "x.high": 1.5,
        "x.n": 4,
    }
    assert flatten("x", {"a": {"b": 2}, "c": None}) == {"x.a.b": 2}


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
    write_report(run_folder)
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


HOSTILE = [
    "<script>document.title = 'ran'</script>",
    "<img src=x onerror=\"document.title = 'ran'\">",
    "</pre></details></script><script>document.title = 'ran'</script>",
    "<svg onload=document.title='ran'>",
    "<a href=\"javascript:document.title='ran'\">javascript:document.title='ran'</a>",
    "'\"><style onload=document.title='ran'></style><!--",
    "]]><iframe srcdoc='<script>parent.document.title=1</script>'></iframe>",
    "{{ 7 * 7 }}{% raw %}\x00\x1b[31m\ud800\u202e",
]
"""What a model may write into any part of a sample; the title changes if anything of it runs."""


@pytest.fixture
def hostile_page(run_folder):
    """A report whose every text that is not ours is hostile: samples, errors, logs, data accounts, metrics."""
    everything = "\n".join(HOSTILE)
    call = f'<TOOLCALL>[{{"name": "{everything}", "arguments": {{"</script>": "{everything}"}}}}]</TOOLCALL>'
    short = [text for text in HOSTILE if len(text) < 40]
    samples = [
        {"kind": everything[:30], "prompt": everything, "thinking": everything, "answer": call},
        *({"kind": text, "domain": text, "text": text, text: text} for text in short),
    ]
    place = run_folder / "refine"
    (place / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    account = json.loads((place / "data.json").read_text())
    (place / "data.json").write_text(json.dumps({**account, "dropped": dict.fromkeys(HOSTILE, 1)}))
    failed = run_folder / "workplace"
    failed.mkdir()
    write_record(failed, StageRecord(
        "workplace", "dpo", "failed", "f", {}, {}, {"from": "refine"}, {}, 1, {}, time.time(), error=everything,
    ))  # fmt: skip
    (failed / "log.txt").write_text(everything, errors="replace")
    (failed / "metrics.jsonl").write_text(
        json.dumps({"time": 0, "step": 3, "total_steps": 9, "phase": everything}) + "\n"
    )
    write_report(run_folder)
    return run_folder / "report.html"


class Elements(HTMLParser):
    """What a browser would make of a page: the elements outside of drawings, and every attribute's name and value."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs


def test_the_page_is_self_contained_and_escapes_what_models_write(hostile_page):
    page = hostile_page.read_text()
    assert not re.search(r'(?:src|href)="http', page)
    for expected in ("Thinking budgets", "Checkpoints", "refine", "&lt;script&gt;", "<svg", "{{ 7 * 7 }}"):
        assert expected in page
    assert not set("\x00\x1b\u202e") & set(page)
    seen = Elements()
    seen.feed(page)
    assert not seen.tags & {"script", "img", "iframe", "a", "object", "embed", "form", "link", "base"}
    assert not [name for name, value in seen.attributes if name.startswith("on") or "javascript:" in (value or "")]
    assert page.count("default-src 'none'") == 1  # and should escaping ever fail, nothing may run


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to open the page in")
@pytest.mark.parametrize("guarded", [True, False])
def test_nothing_runs_in_a_browser(hostile_page, tmp_path, guarded):
    """Without the page's own policy too: escaping alone must hold. The control shows that a script would be seen."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    page = hostile_page.read_text()
    if not guarded:
        page = policy.sub("", page)
        assert "Content-Security-Policy" not in page
    assert "<title>miniature · nanoalign</title>" in rendered(page, tmp_path)
    if not guarded:
        assert "<title>ran</title>" in rendered(page + HOSTILE[0], tmp_path)


def rendered(page, folder):
    """The document after a browser has run what it would run."""
    (folder / "page.html").write_text(page)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom",
               "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
    command = [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def begin(run_folder, name, status, **more):
    """A stage of the run that did not finish."""
    place = run_folder / name
    place.mkdir()
    record = {"error": None, **more}
    write_record(place, StageRecord(name, "grpo", status, "f", {}, {}, {}, {}, 1, {}, time.time(), **record))
    return place


def test_a_failed_stage_says_where_why_and_how_to_go_on(run_folder):
    place = begin(run_folder, "chat", "failed", error="its process ended with status 1")
    rows = [{"time": 0, "step": step, "total_steps": 12, "reward": 0.5} for step in range(1, 8)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "log.txt").write_text("loading\n 10%|#  |\r100%|###|\nRuntimeError: boom\n")
    for step, whole in ((5, True), (6, False)):
        (place / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        if whole:
            (place / "checkpoints" / f"checkpoint-{step}" / "whole").touch()
    write_report(run_folder)
    page = (run_folder / "report.html").read_text()
    again = f"nanoalign run {run_folder}/recipe.yaml --root {run_folder.parent}"
    for expected in (
        '<div class="unfinished failed">', "<b>chat: failed</b>, it reached: step 7 of 12", "RuntimeError: boom",
        "resume from the checkpoint at step 5", f"<code>{again}</code>", f"<code>{again} --set seeds.chat=18</code>",
        f"<code>{again} --force chat</code>", "--until instruct", "chat: reward", "Still to come: foundation,",
    ):  # fmt: skip
        assert expected in page, expected
    assert " 10%|" not in page and "--until merged" not in page


def test_where_a_stage_goes_on(tmp_path):
    assert resume_point(tmp_path) == "its beginning (it has no checkpoint yet)"
    for path in (
        "round-0/round.json",
        "round-9/round.json",
        "round-10/round.json",
        "round-11/checkpoints/checkpoint-4/whole",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert resume_point(tmp_path) == "round 10, the checkpoint at step 4"
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "evaluation.json").write_text('{"checkpoints": {"a": {}, "b": {}}}')
    assert resume_point(tmp_path / "measured") == "the 2 models already measured"
    for place in ("distilled/phase-1/phase.json", "distilled/phase-2/checkpoints/checkpoint-6/whole",
                  "compressed/importance.safetensors"):  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("")
    assert resume_point(tmp_path / "distilled") == "phase 1, the checkpoint at step 6"
    assert resume_point(tmp_path / "compressed") == "the importance already measured"
    (tmp_path / "verdict/records/base").mkdir(parents=True)
    (tmp_path / "verdict/records/base/sums.think.completions.jsonl").touch()
    assert resume_point(tmp_path / "verdict") == "the answers that had ended"
    (tmp_path / "compressed/search.json").write_text('{"candidates": [{"loss": 1.0}, {}]}')
    assert resume_point(tmp_path / "compressed") == "the importance and the 1 candidates already measured"
    (tmp_path / "measured" / "evaluation.json").write_text('{"checkp')
    assert resume_point(tmp_path / "measured") == "its beginning (it has no checkpoint yet)"


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_a_run_in_any_state_has_a_report(run_folder, status):
    begin(run_folder, "chat", status)
    write_report(run_folder)
    state = "killed" if status == "running" else status
    assert f"<b>chat: {state}</b>, it reached: before its first step" in (run_folder / "report.html").read_text()
    with exclusive_lock(run_folder, "a run"):
        write_report(run_folder)
    state = "at work" if status == "running" else status
    assert f"<b>chat: {state}</b>" in (run_folder / "report.html").read_text()


def test_a_run_that_has_just_begun_has_a_report(run_folder, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(ConfigError, match=r"new: not a run's folder \(runs/NAME\): it contains no recipe.yaml"):
        write_report(new)
    shutil.copy(run_folder / "recipe.yaml", new)
    write_report(new)
    assert "stages <b>0 of 9</b>" in (new / "report.html").read_text()
    (new / "recipe.yaml").write_text("name: old\n")
    with pytest.raises(ConfigError, match="not a recipe of this version"):
        write_report(new)


def test_pictures_are_written(run_folder, tmp_path):
    names = {path.name for path in write_pictures(run_folder, tmp_path / "pictures")}
    assert {"budget_score.png", "budget_well_formed.png", "refine_loss.png"} <= names
    assert all((tmp_path / "pictures" / name).stat().st_size > 5000 for name in names)


def test_a_distillation_is_drawn_over_its_phases(tmp_path):
    folder = tmp_path / "distillation"
    place = folder / "distilled"
    place.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(load("distillation")))
    figures = {
        "held_out_kl_first": 0.5, "held_out_kl_last": 0.02, "held_out_loss_first": 1.0, "held_out_loss_last": 0.6,
        "teacher_held_out_loss": 0.5, "gap_closed": 0.8, "tokens": 1000, "tokens_per_s": 10.0,
    }  # fmt: skip
    write_record(place, StageRecord(
        "distilled", "distill", "finished", "f", {}, {}, {"from": "base"}, {}, 1, {}, time.time(), figures=figures
    ))  # fmt: skip
    rows = [{"phase": f"phase {phase} of 2", "step": step, "kl": 1 / (step + phase), "loss": 1.0}
            for phase in (1, 2) for step in (1, 2, 3)]  # fmt: skip
    rows.insert(0, {"phase": "phase 1 of 2", "step": 0, "held_out_kl": 0.5, "held_out_loss": 1.0})
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = {"documents": 9, "document_tokens": 90, "trained_tokens": 50, "rows": 3}
    (place / "data.json").write_text(json.dumps({**counts, "phases": [{**counts, "documents": n} for n in (7, 9)]}))
    section = next(each for each in sections(read_run(folder)) if each.title == "Distillation")
    (lines,) = section.plots[0].figure.axes
    assert {tuple(line.get_xdata()) for line in lines.get_lines()} == {(1, 2, 3, 4, 5, 6), (0,)}
    assert [cell.text for cell in section.tables[0].rows[0]] == [
        "distilled", "refine", "0.500", "0.020", "1.000", "0.600", "0.500", "80.0%"
    ]  # fmt: skip
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "held-out KL 0.500 to 0.020" in page and "distilled, phase 2" in page
