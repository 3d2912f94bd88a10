"""`kind: grpo`: group-relative policy optimization with verifiers or a reward model.

An optimizer step: the engine gets the trainer's weights, answers `batch_size / group_size` prompts `group_size` times
each (or plays a task's episodes, rl/episodes.py), a probe proves the weights fresh, the rewards judge the answers
(rl/collect.py), and the trainer takes one step on them (rl/grpo_trainer.py) under one of the losses of rl/loss.py.
"""

import math
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nanoalign.common.intervals import mean
from nanoalign.common.processes import in_background
from nanoalign.common.stage import StageContext, held_out_rewards
from nanoalign.data_recipes.config import Mixture
from nanoalign.models.schedules import optimizer_steps
from nanoalign.reward import make_reward
from nanoalign.reward.base import Tally
from nanoalign.rl.collect import REASON, OwnEngine, StepRollouts
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.episodes import EpisodeRollouts
from nanoalign.rl.questions import questions
from nanoalign.rl.shared_engine import SharedEngine

PARTS = ("sync_s", "rollout_s", "reward_s", "train_s", "trainer_idle_share", "engine_idle_share", "staleness/mean")
"""Figures of a step that say where its time goes; an engine of the trainer's own process has no idle shares."""


def run(config: GRPOStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Trains, writes ``context.folder/model`` and returns the learning curve's ends.

    Raises:
        ConfigError: settings that cannot work. DataError: bad rows. StaleWeightsError: the engine's weights are old.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.adapters import load_trainable
    from nanoalign.models.loading import load_model, load_tokenizer, save_model
    from nanoalign.rollouts import open_engine

    chat = chat_format(context.chat)
    tokenizer = load_tokenizer(context.inputs["from"])
    first_process, kind = int(os.environ.get("RANK", "0")) == 0, config.rollouts.engine.kind
    asked = questions(config, mixtures, context, chat, tokenizer)
    prompts, everything = asked.prompts, [*asked.prompts, *asked.held_out]
    batch_size, dtype = config.rollouts.batch_size, config.train.dtype
    open_vllm: Any = partial(
        open_engine, config.rollouts.engine, context.inputs["from"], tokenizer, chat, batch_size=batch_size,
        dtype=dtype, exchange=context.folder / "exchange",
        max_length=None if asked.environment is not None
        else max(len(prompt.ids) for prompt in everything) + config.rollouts.max_tokens,
        budgets=any(prompt.mode.budget is not None for prompt in everything),
    )  # fmt: skip
    servers = in_background(open_vllm) if kind == "vllm_server" and first_process else None

    # while servers start, which takes a minute or two
    from nanoalign.models.held_out import restore_best
    from nanoalign.models.training import resolve_device
    from nanoalign.rl.grpo_trainer import grpo_arguments, make_trainer

    device = resolve_device(context.device)
    steps = optimizer_steps(config.train, len(prompts) * config.group_size)
    arguments = grpo_arguments(config, context.folder / "checkpoints", context.device, context.seed, steps)
    fresh_model = partial(load_trainable, context.inputs["from"], config.train.lora, context.seed)
    model = fresh_model(device)
    scorer = open_engine("hf", model, tokenizer, chat, batch_size=batch_size, dtype=dtype)
    engine: Any = scorer if kind == "hf" else open_vllm() if kind == "vllm" else None
    rewards = None
    if engine is not None or servers is not None:
        judge = None
        if config.reward_model is not None:
            from nanoalign.reward.preference import load_reward_model

            judge_device = device if config.reward_gpu is None else f"cuda:{config.reward_gpu}"
            judge = load_reward_model(context.inputs["reward_model"], judge_device)
        rewards = make_reward(config.reward, reward_model=judge, judge=config.judge)
        rewards.know(prompt.task for prompt in everything)
    rollouts: StepRollouts
    common = (scorer, chat, tokenizer, context.seed, context.log, rewards, steps)
    if asked.environment is None:
        rollouts = StepRollouts(config, prompts, *common)
        held_out = replace(rollouts, prompts=asked.held_out, held_out=True)
    else:
        rollouts = EpisodeRollouts(config, prompts, *common, environment=asked.environment, tasks=asked.tasks)
        held_out = replace(rollouts, prompts=asked.held_out, tasks=asked.held_out_tasks, held_out=True)
    collect = SharedEngine(rollouts, servers) if kind == "vllm_server" else OwnEngine(rollouts, engine)
    # without adapters the reference is a model of its own, with them the model below them
    reference = load_model(context.inputs["from"], device=device) if config.kl and not config.train.lora else None
    trainer = make_trainer(
        model, tokenizer, config, arguments, collect, context.log,
        correct_engine=kind != "hf" and config.rollouts.temperature == 1.0, reference=reference,
        measure=partial(collect.measure, held_out) if asked.held_out else None,
    )  # fmt: skip
    with closing(collect):
        trainer.train_or_resume()
    restore_best(trainer)
    if (trained := trainer.full_model(fresh_model)) is not None:
        save_model(trained, tokenizer, context.folder / "model")
    trainer.accelerator.wait_for_everyone()
    figures = {**learning_figures(trainer.state.log_history, config), **asked.report}
    if config.train.early_stop is not None:  # the model is that of the best measurement
        figures |= {"held_out_reward_last": trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    return figures | held_out_gain(context.folder, figures.get("best_step"))


def held_out_gain(folder: Path, step: int | None = None) -> dict[str, Any]:
    """How much higher the rewards of what is held out are after ``step`` (None: the last measurement) than before the
    first step, prompt by prompt or task by task; nothing where they were not measured twice."""
    rewards = held_out_rewards(folder)
    after = rewards.get(max(rewards, default=0) if step is None else step)
    if after is None or len(rewards) < 2 or 0 not in rewards:
        return {}
    differences = [late - early for early, late in zip(rewards[0], after, strict=True)]
    return {"held_out_reward_gain": mean(differences).as_dict()}


def learning_figures(history: Sequence[Mapping[str, float]], config: GRPOStage) -> dict[str, Any]:
    """First and last tenth of the learning curve (means over steps, with intervals; n counts completions)."""
    rows = [row for row in history if "reward" in row]
    tenth = max(1, len(rows) // 10)

    def ends(name: str) -> dict[str, Any]:
        first, last = (
            replace(mean([row[name] for row in part]), n=tenth * config.train.batch_size)
            for part in (rows[:tenth], rows[-tenth:])
        )
        return {"first": first.as_dict(), "last": last.as_dict(), "gain": last.value - first.value}

    unseen = [row["held_out_reward"] for row in history if "held_out_reward" in row]
    total = ends("reward")
    counted: Counter[str] = Counter()
    for row in rows:
        counted.update({name: round(value) for name, value in row.items() if name.startswith(REASON)})
    written = round(config.train.batch_size * math.fsum(row.get("episodes/turns", 1.0) for row in rows))
    tally = Tally(written, Counter({n.removeprefix(REASON): c for n, c in counted.items()}))
    groups = config.train.batch_size // config.group_size
    return {
        "reward_first": total["first"],
        "reward_last": total["last"],
        **{f"reward_{name}": ends(f"rewards/{name}/mean") for name in config.weights},
        **({"success": ends("success")} if "success" in rows[0] else {}),
        **({"held_out_reward_first": unseen[0], "held_out_reward_last": unseen[-1]} if unseen else {}),
        "steps": len(rows),
        "answers": tally.as_dict(),
        "groups": groups * len(rows),
        "groups_without_signal": round(sum(row["frac_reward_zero_std"] for row in rows) * groups),
        "mismatch_max": max(row["mismatch"] for row in rows),
        "rollout_tokens_per_s": statistics.fmean(row["rollout_tokens_per_s"] for row in rows),
        "step_s": statistics.fmean(row["step_time"] for row in rows),
        **{name: statistics.fmean(row[name] for row in rows) for name in PARTS if name in rows[0]},
    }
