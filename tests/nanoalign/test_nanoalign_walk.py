"""The walks in docs/architecture.md are the ways that data really takes."""

import json
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.models.config import Training
from nanoalign.models.loading import save_model
from nanoalign.rl.config import GRPOStage
from nanoalign.rollouts.config import Rollouts
from nanoalign.sft.config import SFTStage
from tests.tiny import tiny_hybrid, tiny_tokenizer, token_ids

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def walk(title: str) -> list[tuple[str, str]]:
    section = PAGE.split(f"## {title}")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", section, flags=re.M)


def steps_of(run: Any, wanted: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The calls of these functions (file, name), in order, while ``run`` runs."""
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name in names:
            file = str(Path(frame.f_code.co_filename).resolve())
            if file.startswith(str(ROOT)) and (step := (file[len(str(ROOT)) + 1 :], frame.f_code.co_name)) in wanted:
                found.append(step)

    names = {name for _, name in wanted}
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    folder = tmp_path_factory.mktemp("walk")
    tokenizer = tiny_tokenizer("nemotron-nano-v2")
    save_model(tiny_hybrid(len(tokenizer), **token_ids(tokenizer)), tokenizer, folder / "base")
    rows = [to_row(Conversation((Message("user", f"say {n}"), Message("assistant", f"on {n}")))) for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StageContext(
        "stage", folder / "stage", {"from": folder / "base"}, "nemotron-nano-v2", 1, None, "cpu",
        log=StageLog(folder / "stage"),
    )  # fmt: skip


def in_order(taken: list[tuple[str, str]], expected: list[tuple[str, str]]) -> None:
    """Whether the expected steps are taken, the first of each in this order."""
    first = [taken.index(step) for step in expected if step in taken]
    assert set(expected) <= set(taken), set(expected) - set(taken)
    assert first == sorted(first), [taken[place] for place in sorted(first)]


@pytest.mark.parametrize(("title", "most"), [("A prompt's walk through GRPO", 14), ("A row's walk through SFT", 12)])
def test_a_walk_is_short_and_enters_no_file_more_than_twice(title: str, most: int) -> None:
    files = [file for file, _ in walk(title)]
    assert 8 < len(files) <= most
    assert all(files.count(file) <= 2 and (ROOT / file).is_file() for file in files)


def test_a_prompt_walks_through_grpo_as_the_page_says(context: StageContext) -> None:
    from nanoalign.rl import grpo, grpo_trainer  # noqa: F401

    stage = GRPOStage(**{
        "kind": "grpo", "from": "base", "data": "m", "reward": {"format": 1.0}, "group_size": 4,
        "rollouts": Rollouts(max_tokens=6, grace=2, batch_size=8),
        "train": Training(learning_rate=1e-3, batch_size=8, steps=1, dtype="float32"),
    })  # fmt: skip
    mixtures = {"m": Mixture(sources={f"file:{context.folder.parent / 'rows.jsonl'}": 8})}
    expected = walk("A prompt's walk through GRPO")
    in_order(steps_of(lambda: grpo.run(stage, mixtures, context), set(expected)), expected)


def test_a_row_walks_through_sft_as_the_page_says(context: StageContext) -> None:
    from nanoalign.sft import stage as sft
    from nanoalign.sft import trainer  # noqa: F401

    config = SFTStage(**{
        "kind": "sft", "from": "base", "data": "m", "pack": {"length": 128},
        "train": Training(learning_rate=1e-3, batch_size=1, steps=1, dtype="float32"),
    })  # fmt: skip
    mixtures = {"m": Mixture(sources={f"file:{context.folder.parent / 'rows.jsonl'}": 8})}
    expected = walk("A row's walk through SFT")
    in_order(steps_of(lambda: sft.run(config, mixtures, context), set(expected)), expected)
