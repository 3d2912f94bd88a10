"""A recipe with a compression, through the runner: current where nothing changed, killed and resumed, in the report."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from nanoalign.artifacts import read_record, write_record
from nanoalign.graph import nodes
from nanoalign.recipe.load import load
from nanoalign.report.read import read_run
from nanoalign.report.sections import sections
from nanoalign.runner import Options, run

RECIPE = """\
name: small
seed: 3
model: builtin:miniature-base
chat: nemotron-nano-v2
device: cpu
data:
  mixed: {sources: {miniature:math: 24, miniature:chat: 8}}
  test: {sources: {miniature:math: {samples: 4, split: test}}}
suites: {math: {data: test}}
stages:
  smaller:
    kind: compress
    from: base
    data: mixed
    grid: {blocks: [10, 11], attention_blocks: [1], hidden_size: [160, 192], intermediate_size: [512]}
    memory: {gib: 1.0, context: 1024}
    calibration: {length: 256, rows: 2, depth_rows: 1, held_out_rows: 2}
    screen: 2
    best: 1
  verdict:
    kind: evaluate
    of: [smaller]
    suites: [math]
    rollouts: {max_tokens: 12, grace: 0, temperature: 0.0}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "small.yaml").write_text(RECIPE, encoding="utf-8")
    assert run(load(str(root / "small.yaml")), Options(root), Console(file=io.StringIO())) == ["smaller", "verdict"]
    return root


def test_it_stays_current_until_its_settings_change(finished: Path):
    def stale(text: str) -> list[str]:
        (finished / "other.yaml").write_text(text, encoding="utf-8")
        return [node.name for node in nodes(load(str(finished / "other.yaml")), finished / "small") if node.reason]

    assert stale(RECIPE) == []
    assert stale(RECIPE.replace("hidden_size: [160, 192]", "hidden_size: [160]")) == ["smaller", "verdict"]
    assert stale(RECIPE.replace("screen: 2", "screen: 3")) == ["smaller", "verdict"]


def test_the_report_shows_candidates_and_the_order_of_removal(finished: Path):
    section = next(each for each in sections(read_run(finished / "small")) if each.title == "Compression")
    candidates, order = section.tables
    assert [row[0].text for row in candidates.rows][:2] == ["whole", "chosen"] and candidates.rows[1][0].best
    assert "parameters" in candidates.head and "loss as pruned" in candidates.head
    assert len(order.rows) == 2 and {row[1].small for row in order.rows} >= {"attention"}
    assert "<svg" in section.plots[0].svg
    page = (finished / "small/report.html").read_text(encoding="utf-8")
    assert "Order of removal" in page and "of 3,800,072 parameters, of 4 shapes" in page


@pytest.mark.slow
def test_a_killed_stage_takes_up_what_it_measured(finished: Path):
    """As a kill leaves it: a record that is marked running, everything measured, no model."""
    place = finished / "small/smaller"
    record = read_record(place)
    assert record is not None
    before = {file: (place / file).read_bytes() for file in ("importance.safetensors", "removals.jsonl", "search.json")}
    weights = (place / "model/model.safetensors").read_bytes()
    write_record(place, type(record)(**record.__dict__ | {"status": "running", "figures": {}}))
    (place / "model").rename(place / "gone")
    try:
        run(load(str(finished / "small.yaml")), Options(finished, until=["smaller"]), Console(file=io.StringIO()))
        assert (place / "model/model.safetensors").read_bytes() == weights
        assert before == {file: (place / file).read_bytes() for file in before}
    finally:
        shutil.rmtree(place / "gone")
