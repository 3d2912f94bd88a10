"""recipes/smollm2-reasoner.yaml for a machine without reasoning-gym, with its generated sources as files; and tiny."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from nanoalign.data_recipes.generators import generate
from nanoalign.data_recipes.rows import to_row
from nanoalign.recipe.load import dump, load

NAME = "smollm2-reasoner"
TEST_ROWS = {"worked:prime_factorization": 90}
"""Of the test files: several times what a suite takes, so that suites of different stages draw different tasks. There
are only so many numbers up to 1000."""


def write_sources(folder: Path, tiny: bool = False) -> None:
    """``NAME.train.jsonl`` with as many rows as a mixture takes of the source at most, ``NAME.test.jsonl`` with 300."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[tuple[str, str], int] = defaultdict(int)
    for mixture in load(NAME).data.values():
        for name, use in mixture.uses.items():
            if name.startswith("worked:"):
                rows = use.samples if use.split == "train" else TEST_ROWS.get(name, 300)
                wanted[name, use.split] = max(wanted[name, use.split], 12 if tiny else rows)
    for (name, split), rows in wanted.items():
        made = generate(name, rows, split, 17)  # type: ignore[arg-type]
        text = "".join(json.dumps(to_row(each), ensure_ascii=False) + "\n" for each in made)
        _file(folder, name, split).write_text(text, encoding="utf-8")


def _file(folder: Path, name: str, split: str) -> Path:
    return folder / f"{name.partition(':')[2]}.{split}.jsonl"


def derived(sources: Path | None, tiny: bool, model: str | None, chat: str | None) -> dict[str, Any]:
    """The recipe in plain data."""
    recipe: dict[str, Any] = yaml.safe_load(dump(load(NAME)))
    recipe["model"], recipe["chat"] = model or recipe["model"], chat or recipe["chat"]
    for mixture in recipe["data"].values():
        if sources is not None:
            mixture["sources"] = {_from_file(sources, name, use): use for name, use in mixture["sources"].items()}
        if tiny:
            mixture["sources"] = {name: _few(use) for name, use in mixture["sources"].items()}
            mixture["max_characters"] = 3000
            mixture["on_bad_row"] = "skip"
    if tiny:
        for stage in recipe["stages"].values():
            stage |= _tiny(stage)
        for suite in recipe["suites"].values():
            suite["samples"] = 3
    return recipe


def _from_file(folder: Path, name: str, use: Any) -> str:
    if not name.startswith("worked:"):
        return name
    return f"file:{_file(folder.resolve(), name, use['split'] if isinstance(use, dict) else 'train')}"


def _few(use: Any) -> Any:
    return use | {"samples": 3} if isinstance(use, dict) else min(use, 6)


def _tiny(stage: dict[str, Any]) -> dict[str, Any]:
    """Changes that make a stage take seconds on a CPU."""
    changed: dict[str, Any] = {}
    if "train" in stage:
        changed["train"] = stage["train"] | {
            "batch_size": 4, "micro_batch_size": 2, "steps": 2, "epochs": None, "dtype": "float32"
        }  # fmt: skip
    if stage.get("rollouts"):
        changed["rollouts"] = stage["rollouts"] | {
            "engine": {"kind": "hf"},
            "max_tokens": 24,
            "grace": 4,
            "batch_size": 16,
        }
    if stage.get("pack"):
        changed["pack"] = stage["pack"] | {"length": 2048}
    if "budgets" in stage:
        changed["budgets"] = [4, 8, None] if stage["kind"] == "evaluate" else [8]
    if stage["kind"] == "grpo":
        changed |= {"group_size": 2, "thinking": stage["thinking"] | {"budgets": [None, 8]}, "max_mismatch": 2.0}
    if stage["kind"] == "dpo":
        few = {"tasks_per_round": 3, "samples_per_task": 2, "held_out_tasks": 2, "held_out_samples": 2, "rounds": 2}
        changed |= few | {"min_pairs": 2, "max_batches": 2, "pairs_per_task": 1, "max_turns": 2}
    if stage["kind"] == "merge":
        changed["alphas"] = [0.5]
    return changed
