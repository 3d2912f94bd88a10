"""GRPO with tool calls beside iterative DPO, in the miniature's workplace, from one model and in equal time.

    python benchmarks/agentic.py MODEL --steps 24 --json docs/results/agentic.json

MODEL is a finished `refine` stage of recipes/miniature.yaml (runs/miniature/refine/model), which that recipe's DPO
starts from. GRPO takes so many steps; DPO, with the recipe's settings, as many rounds as it takes to have used as much
processor time (one thread; the wall time of a shared machine, recorded too, depends on its other users). Neither branch
measures held-out success in that time; every model then plays the same held-out tasks once, greedily.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nanoalign.common.files import write_json
from nanoalign.common.intervals import mean, proportion
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.models.config import Training
from nanoalign.rl.config import DPOStage, GRPOStage
from nanoalign.rollouts.config import Rollouts, Thinking

ENVIRONMENT, CHAT, MAX_TURNS = "miniature-workplace", "nemotron-nano-v2", 6


def grpo_stage(options: argparse.Namespace) -> GRPOStage:
    train = Training(
        learning_rate=options.learning_rate, schedule="constant", warmup_ratio=0.0, batch_size=options.batch,
        steps=options.steps, micro_batch_size=options.micro, dtype="float32", checkpoint_every=4,
    )  # fmt: skip
    return GRPOStage.model_validate(
        {
            "kind": "grpo", "from": "base", "environment": ENVIRONMENT, "max_turns": MAX_TURNS, "train": train,
            "reward": {"environment": 1.0} | ({"format": options.format} if options.format else {}),
            "group_size": options.group,
            "rollouts": Rollouts(max_tokens=64, grace=8, temperature=0.8, batch_size=96),
            "thinking": Thinking(),
        }
    )  # fmt: skip


def dpo_stage(rounds: int) -> DPOStage:
    """The stage `workplace` of recipes/miniature.yaml, with one held-out task: what is held out is measured here."""
    return DPOStage.model_validate(
        {
            "kind": "dpo", "from": "base", "environment": ENVIRONMENT, "rounds": rounds, "tasks_per_round": 48,
            "samples_per_task": 4, "held_out_tasks": 1, "max_turns": MAX_TURNS,
            "rollouts": Rollouts(max_tokens=64, grace=8, temperature=0.8, batch_size=96),
            "train": Training(learning_rate=5e-5, batch_size=16, epochs=1, dtype="float32", checkpoint_every=25),
        }
    )  # fmt: skip


def held_out(model: Path, count: int, seed: int) -> list[bool]:
    """Success on each of the first ``count`` test tasks of the DPO stage's own order, greedily, thinking."""
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.loading import load_model, load_tokenizer
    from nanoalign.rl.collect import row_schedule
    from nanoalign.rl.dpo import HELD_OUT
    from nanoalign.rollouts import open_engine
    from nanoalign.rollouts.base import Mode, Sampling
    from nanoalign.rollouts.environments import environment
    from nanoalign.rollouts.episodes import play
    from nanoalign.rollouts.seeds import derive_seed

    chat, tokenizer, played = chat_format(CHAT), load_tokenizer(model), environment(ENVIRONMENT, None)
    test = list(played.tasks("test"))
    tasks = [test[row] for row in row_schedule(len(test), count, derive_seed(seed, HELD_OUT))]
    engine = open_engine("hf", load_model(model), tokenizer, chat, batch_size=128)
    settings = Mode(True), Sampling(max_tokens=64, temperature=0.0, grace=8)
    records = play(engine, played, tasks, 1, lambda *_: settings, chat, tokenizer, MAX_TURNS)
    return [record.success for record in records]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of processor and of wall time."""
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def context(name: str, options: argparse.Namespace) -> StageContext:
    folder = options.folder / name
    return StageContext(name, folder, {"from": options.model}, CHAT, options.seed, None, "cpu", log=StageLog(folder))


def train_grpo(options: argparse.Namespace) -> tuple[Path, dict[str, float]]:
    """The model, and what it took."""
    from nanoalign.rl import grpo

    told: dict[str, Any] = {}
    processor_s, wall_s = timed(lambda: told.update(grpo.run(grpo_stage(options), {}, context("grpo", options))))
    figures = {
        "grpo.processor_s": processor_s, "grpo.wall_s": wall_s, "grpo.steps": options.steps,
        "grpo.episodes": options.steps * options.batch, "grpo.sampled_first": told["success"]["first"]["value"],
        "grpo.sampled_last": told["success"]["last"]["value"],
    }  # fmt: skip
    return options.folder / "grpo/model", figures


def train_dpo(options: argparse.Namespace, processor_s: float) -> tuple[dict[str, Path], dict[str, float]]:
    """The models of the recipe's rounds and of the first round that ends after ``processor_s``, and what they took."""
    from nanoalign.rl import dpo

    spent = wall = 0.0
    rounds, models = 0, {}
    while rounds < options.least_rounds or spent < processor_s:
        rounds += 1
        more, more_wall = timed(partial(dpo.run, dpo_stage(rounds), {}, context("dpo", options)))
        spent, wall = spent + more, wall + more_wall
        if rounds == 3:
            models["dpo_recipe"] = options.folder / "dpo/round-3/model"
    models["dpo"] = options.folder / f"dpo/round-{rounds}/model"
    return models, {"dpo.processor_s": spent, "dpo.wall_s": wall, "dpo.rounds": rounds, "dpo.episodes": 192 * rounds}


def gain(before: list[bool], after: list[bool]) -> dict[str, float]:
    """Points of success, task by task."""
    return mean([100.0 * (late - early) for early, late in zip(before, after, strict=True)]).as_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--format", type=float, default=0.0, help="weight of the reward for an answer's form")
    parser.add_argument("--least-rounds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.mkdtemp(prefix="agentic-")))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    estimates: dict[str, Any] = {}
    machine = {
        "cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "niced": os.nice(0) > 0,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl", "accelerate")},
    }  # fmt: skip
    before = held_out(options.model, options.held_out, options.seed)
    estimates["before"] = proportion(sum(before), len(before)).as_dict()

    def note(name: str, model: Path) -> None:
        after = held_out(model, options.held_out, options.seed)
        estimates[name] = proportion(sum(after), len(after)).as_dict()
        estimates[f"{name}.gain_points"] = gained = gain(before, after)
        prefix = "agentic." if name == "grpo" else f"agentic.{name}_"
        figures.update({f"{prefix}success_gain_points{end}": gained[key] for end, key in
                        (("", "value"), ("_low", "low"), ("_high", "high"))})  # fmt: skip
        machine["load_after"] = os.getloadavg()[0]
        print(json.dumps(figures, indent=1), flush=True)
        if options.json:
            record = {"command": " ".join(["python", *sys.argv]), "machine": machine, "seed": options.seed}
            write_json(options.json, record | {"figures": figures, "estimates": estimates})

    model, took = train_grpo(options)
    figures.update(took)
    note("grpo", model)
    models, took = train_dpo(options, figures["grpo.processor_s"])
    figures.update(took)
    for name, model in models.items():
        note(name, model)


if __name__ == "__main__":
    main()
