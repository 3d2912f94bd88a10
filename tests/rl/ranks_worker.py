"""Trains GRPO and DPO in several ways on gloo ranks of this machine: python ranks_worker.py BASE FOLDER WAY ..."""

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed.ops
import torch

from nanoalign import rollouts
from nanoalign.common.processes import in_background
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.rows import to_row
from nanoalign.launch import deepspeed_environment
from nanoalign.models.adapters import attach
from nanoalign.models.config import LoRA, Training
from nanoalign.models.loading import load_model
from nanoalign.rl import dpo, reward_model
from nanoalign.rl.collect import Collected
from nanoalign.rl.config import DPOStage, GRPOStage, RewardModelStage
from nanoalign.rl.dpo_trainer import PairTrainer
from nanoalign.rl.grpo_trainer import grpo_arguments, make_trainer
from nanoalign.rl.shared_engine import SharedEngine
from nanoalign.rollouts.config import Rollouts, Thinking
from tests.ranks import on_ranks
from tests.rl.test_rl_dpo import EvenEnvironment
from tests.rl.test_rl_grpo_trainer import random_collected
from tests.rl.test_rl_reward_model import preferences
from tests.rl.test_rl_whole_episodes import cut
from tests.sft.ranks_worker import split_everything
from tests.toy import toy_model, toy_tokenizer

WHOLE = 24
"""Completions of a step."""
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "two": (2, {}),
    "three": (3, {}),
    "packed": (2, {"pack_tokens": 40}),
    "shared_engine": (2, {"shared": True}),
    "ahead": (3, {"shared": True, "ahead": 1, "pack_tokens": 40}),
    "resumed": (2, {"killed": True}),
    "zero2": (2, {"zero": 2, "pack_tokens": 40}),
    "zero3": (2, {"zero": 3, "pack_tokens": 40}),
    "zero3_resumed": (2, {"zero": 3, "killed": True}),
    "zero3_shared": (3, {"zero": 3, "shared": True, "ahead": 1}),
    "zero1": (2, {"zero": 1, "micro_batch_size": 2}),
    "lora": (1, {"lora": LoRA(rank=4)}),
    "lora_zero3": (2, {"lora": LoRA(rank=4), "zero": 3, "shared": True}),
    "lora_two": (2, {"lora": LoRA(rank=4), "pack_tokens": 40}),
    "cut": (1, {"loss": "gspo"}),
    "cut_two": (2, {"loss": "gspo", "pack_tokens": 40}),
    "cut_zero3": (2, {"loss": "gspo", "micro_batch_size": 4, "zero": 3}),
    "kl": (1, {"kl": 0.1}),
    "kl_zero3": (2, {"kl": 0.1, "zero": 3}),
    "kl_two": (2, {"kl": 0.1, "pack_tokens": 40}),
    "reward": (1, {}),
    "reward_zero3": (2, {"zero": 3}),
    "dpo": (1, {}),
    "dpo_two": (2, {}),
    "dpo_zero3": (2, {"zero": 3}),
    "dpo_own": (2, {"engine": "vllm"}),
    "dpo_server": (2, {"engine": "vllm_server"}),
    "dpo_zero3_killed": (2, {"zero": 3, "killed": True, "engine": "vllm_server"}),
    "dpo_half_zero3": (2, {"zero": 3, "lora": LoRA(rank=4), "dtype": "bfloat16"}),
    "dpo_lora": (1, {"lora": LoRA(rank=4)}),
    "dpo_lora_zero3": (2, {"zero": 3, "lora": LoRA(rank=4), "engine": "vllm"}),
}
"""Processes and settings."""


def share(step: int, first: int, count: int) -> Collected:
    return random_collected(step, 0, WHOLE).part(first, count)


def share_in_rows(step: int, first: int, count: int) -> Collected:
    """Some completions are episodes of two rows."""
    return cut(random_collected(step, 0, WHOLE)).part(first, count)


class Answers:
    """In place of :class:`rl.collect.StepRollouts` and of a pool: answers are known before they are asked."""

    lost = 0

    def __init__(self, stage: GRPOStage, model: Any) -> None:
        self.stage, self.steps, self.prompts, self.scorer, self.model = stage, 3, [], self, model

    def begin(self, pool: Any, step: int, first: int, count: int) -> Any:
        return list

    def judge(self, step: int, first: int, answers: Any) -> Collected:
        collected = random_collected(step, 0, WHOLE)
        return replace(collected, versions=[(step,) * len(ids) for ids in collected.completion_ids])

    def require_fresh(self, collected: Collected, step: int) -> float:
        return 1.0

    def send(self, tensors: Any, version: int, texts: Any = ()) -> list[list[list[float]]]:
        weights = dict(tensors)
        expected = toy_model("hybrid").state_dict()
        assert {name: each.shape for name, each in weights.items()} == {n: e.shape for n, e in expected.items()}
        return [[]]

    def score(self, texts: Any) -> list[list[float]]:
        return []

    def wants_weights(self) -> bool:
        return False

    def busy_s(self) -> float:
        return 0.0


def train(
    folder: Path, lora: LoRA | None = None, pack_tokens: int | None = None, shared: bool = False, killed: bool = False,
    micro_batch_size: int | None = None, kl: float = 0.0, ahead: int = 0, loss: str = "dapo",
) -> None:  # fmt: skip
    engine = "vllm_server" if shared else "hf"
    stage = GRPOStage(**{
        "kind": "grpo", "from": "base", "data": "prompts", "reward": {"task": 1.0, "length": 0.5}, "group_size": 4,
        "rollouts": Rollouts(engine=engine, max_tokens=12, ahead=ahead), "pack_tokens": pack_tokens, "kl": kl,
        "loss": loss,
        "train": Training(learning_rate=1e-3, batch_size=WHOLE, micro_batch_size=micro_batch_size, steps=3,
                          dtype="float32", checkpoint_every=1, lora=lora),
    })  # fmt: skip
    rank = int(os.environ.get("RANK", "0"))

    def run(collect: Any) -> Any:
        model = toy_model("hybrid")
        reference = toy_model("hybrid") if kl else None
        policy = attach(model, lora, 0) if lora else model
        if shared:
            answers: Any = Answers(stage, policy)
            collect = SharedEngine(answers, in_background(lambda: answers) if rank == 0 else None)
        arguments = grpo_arguments(stage, folder / "checkpoints", "cpu", 3, 3)
        trainer = make_trainer(
            policy, toy_tokenizer(), stage, arguments, collect, StageLog(folder), reference=reference,
            correct_engine=loss == "gspo",
        )  # fmt: skip
        assert trainer.is_deepspeed_enabled == ("ACCELERATE_USE_DEEPSPEED" in os.environ)
        trainer.train_or_resume()
        return trainer

    if killed:

        def dies(step: int, *part: int) -> Collected:
            if step == 2:
                raise KeyboardInterrupt
            return share(step, *part)

        with contextlib.suppress(KeyboardInterrupt):
            run(dies)
    trainer = run(share_in_rows if loss == "gspo" else share)
    whole = trainer.full_model(lambda: attach(toy_model("hybrid"), lora, 0) if lora else toy_model("hybrid"))
    if rank == 0:
        log = [row for row in trainer.state.log_history if "reward" in row]
        torch.save({"weights": whole.state_dict(), "log": log}, folder / "end.pt")


def open_copy(settings: Any, model: Any, tokenizer: Any, chat: Any, **more: Any) -> Any:
    """In place of a vLLM: an engine on a model of its own, which knows only the weights that it is given."""
    if settings == "hf":
        return open_hf("hf", model, tokenizer, chat, **more)
    assert settings.kind == "vllm" or int(os.environ["RANK"]) == 0, "the first process asks the server"
    own = load_model(model)
    engine: Any = open_hf("hf", own, tokenizer, chat, batch_size=more["batch_size"], dtype=more["dtype"])

    def load_weights(tensors: Any) -> None:
        as_here = {name.replace("backbone.", "model.", 1): tensor for name, tensor in tensors}  # the hub's names
        assert not own.load_state_dict(as_here, strict=False).unexpected_keys

    engine.load_weights = load_weights
    return engine


open_hf = rollouts.open_engine


def play_and_train(
    folder: Path, base: Path, engine: str = "hf", lora: LoRA | None = None, killed: bool = False, dtype: str = "float32"
) -> None:
    """A whole stage, on an environment of the tests; ``killed``: first until the second step of a round."""
    rollouts.environments.environment = lambda name, data_root: EvenEnvironment()
    rollouts.open_engine = open_copy
    train = Training(learning_rate=1e-3, batch_size=4, steps=2, dtype=dtype, checkpoint_every=1, lora=lora)
    stage = DPOStage(**{
        "kind": "dpo", "from": "base", "environment": "even", "rounds": 2, "tasks_per_round": 4, "samples_per_task": 4,
        "held_out_tasks": 5, "max_turns": 2, "train": train, "thinking": Thinking(on=0.5),
        "rollouts": Rollouts(engine=engine, max_tokens=6, batch_size=16),
    })  # fmt: skip
    context = StageContext("even", folder, {"from": base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder))
    if killed:
        step: Any = PairTrainer.training_step

        def dies(trainer: Any, *args: Any) -> Any:
            if trainer.state.global_step == 1:
                raise KeyboardInterrupt
            return step(trainer, *args)

        PairTrainer.training_step = dies
        with contextlib.suppress(KeyboardInterrupt):
            dpo.run(stage, {}, context)
        PairTrainer.training_step = step
        torch.distributed.barrier()
        assert (folder / "round-1" / "checkpoints" / "checkpoint-1" / "whole").is_file()
    figures = dpo.run(stage, {}, context)
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / "figures.json").write_text(json.dumps(figures))


def prefer(folder: Path, base: Path) -> None:
    """A whole stage of a reward model."""
    train = Training(learning_rate=3e-3, batch_size=16, epochs=1, dtype="float32")
    stage = RewardModelStage(**{"kind": "reward_model", "from": "base", "data": "m", "train": train})
    context = StageContext("judge", folder, {"from": base}, "nemotron-nano-v2", 5, None, "cpu", log=StageLog(folder))
    rows = folder.parent / "preferences.jsonl"
    if not rows.exists():
        rows.write_text("".join(json.dumps(to_row(each)) + "\n" for each in preferences(60)))
    reward_model.run(stage, {"m": Mixture(sources={f"file:{rows}": 60})}, context)


def main() -> None:
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles collectives for two minutes
    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for way in sys.argv[3:]:
        ranks, settings = WAYS[way]

        def work(rank: int, way: str = way, settings: dict[str, Any] = settings) -> None:
            if zero := settings.pop("zero", 0):
                os.environ |= split_everything(deepspeed_environment(zero, folder / f"{way}.{rank}.json"), rank)
            if way.startswith("reward"):
                prefer(folder / way, base)
            elif way.startswith("dpo"):
                play_and_train(folder / way, base, **settings)
            else:
                train(folder / way, **settings)

        if not on_ranks(ranks, work):
            sys.exit(f"{way} failed")


if __name__ == "__main__":
    main()
