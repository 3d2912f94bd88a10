"""`kind: grpo`: group-relative policy optimization with verifiers or a reward model.

An optimizer step: the engine gets the trainer's weights, answers `batch_size / group_size` prompts `group_size` times
each, a probe proves the weights fresh, the rewards judge the answers, and TRL's trainer takes one step on them.
"""

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.common.stats import mean
from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.mixture import build
from nanoalign.reward import ComposedReward, Sample, make_reward
from nanoalign.reward.base import Tally
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.freshness import mismatch, require_fresh
from nanoalign.rl.prompts import Prompt, prompts_of
from nanoalign.rollouts.base import Completion, Request, RolloutEngine
from nanoalign.rollouts.modes import sampling
from nanoalign.rollouts.restarts import RestartingEngine
from nanoalign.rollouts.samples import judged, never_empty
from nanoalign.rollouts.sampling import seed_of

PROBE = 8
"""Completions a step on which engine and trainer are compared."""

REASON = "reason/"
"""Begins the names of metrics that count completions by what was wrong with them, or why a reward did not judge them on
their merits."""

SAMPLE_TABLES = 20
"""Times in a stage at which rendered samples are kept for the report."""


def run(config: GRPOStage, mixtures: Mapping[str, Mixture], context: StageContext) -> dict[str, Any]:
    """Trains, writes ``context.folder/model`` and returns the learning curve's ends.

    Raises:
        ConfigError: settings that cannot work. DataError: bad rows. StaleWeightsError: the engine's weights are old.
    """
    from nanoalign.data_recipes.chat import chat_format
    from nanoalign.models.adapters import attach, merge
    from nanoalign.models.loading import load_model, load_tokenizer, save_model
    from nanoalign.models.training import resolve_device
    from nanoalign.rl.grpo_trainer import make_trainer
    from nanoalign.rollouts import open_engine

    chat = chat_format(context.chat)
    tokenizer = load_tokenizer(context.inputs["from"])
    device = resolve_device(context.device)
    model: Any = load_model(context.inputs["from"], device=device)
    built = build(mixtures[config.data], context.data_root, context.seed, chat=chat)
    prompts = prompts_of(built.conversations, config.thinking, chat, tokenizer, context.seed)
    shares_weights = config.rollouts.engine == "hf"
    if config.train.lora is not None:
        if not shares_weights:
            raise ConfigError("train.lora: adapters are not handed to vLLM; use `engine: hf` or train all weights")
        model = attach(model, config.train.lora, context.seed)
    batch_size, dtype = config.rollouts.batch_size, config.train.dtype
    scorer = open_engine("hf", model, tokenizer, chat, batch_size=batch_size, dtype=dtype)
    engine = scorer
    if not shares_weights:
        longest = max(len(prompt.ids) for prompt in prompts) + config.rollouts.max_tokens
        engine = open_engine(
            config.rollouts.engine, context.inputs["from"], tokenizer, chat, batch_size=batch_size, dtype=dtype,
            max_length=longest, settings=config.rollouts, exchange=context.folder / "exchange",
            budgets=any(prompt.mode.budget is not None for prompt in prompts),
        )  # fmt: skip
    judge = None
    if config.reward_model is not None:
        from nanoalign.reward.preference import load_reward_model

        judge_device = device if config.reward_gpu is None else f"cuda:{config.reward_gpu}"
        judge = load_reward_model(context.inputs["reward_model"], judge_device)
    rewards = make_reward(config.reward, reward_model=judge, judge=config.judge)
    rollouts = StepRollouts(config, prompts, engine, scorer, chat, tokenizer, context.seed, context.log, rewards)
    trainer = make_trainer(
        model, tokenizer, config, len(prompts), rollouts, context.folder / "checkpoints", context.log, device,
        context.seed, correct_engine=not shares_weights and config.rollouts.temperature == 1.0,
    )  # fmt: skip
    rollouts.steps = trainer.args.max_steps
    trainer.train_or_resume()
    engine.close()
    save_model(merge(trainer.model) if config.train.lora else trainer.model, tokenizer, context.folder / "model")
    report = {"dropped": dict(built.report.dropped), "not_read": dict(built.report.not_read)}
    return learning_figures(trainer.state.log_history, config) | report


@dataclass
class StepRollouts:
    """A :data:`rl.grpo_trainer.Collect`: what one optimizer step trains on."""

    stage: GRPOStage
    prompts: Sequence[Prompt]
    engine: RolloutEngine
    scorer: Any
    """An :class:`rollouts.hf.HFEngine` on the trainer's own model."""
    chat: ChatFormat
    tokenizer: Any
    seed: int
    log: StageLog
    rewards: ComposedReward
    steps: int = 0

    def __call__(self, rows: Sequence[int], step: int, first: int) -> Any:
        from nanoalign.rl.grpo_trainer import Collected

        sync_at = time.perf_counter()
        if self.engine is not self.scorer:
            self.engine.load_weights(self.scorer.model.state_dict().items())
        sync_s = time.perf_counter() - sync_at
        asked = [self.prompts[row] for row in rows]
        requests = [
            Request(prompt.ids, sampling(self.stage.rollouts, prompt.mode, seed_of(self.seed, step, first + place)))
            for place, prompt in enumerate(asked)
        ]
        started = time.perf_counter()
        stop_id = min(self.scorer.thinking.stop_ids)
        completions = [never_empty(each, stop_id) for each in self.engine.generate(requests)]
        seconds = time.perf_counter() - started
        self.engine.sleep()
        tokens = sum(len(completion.token_ids) for completion in completions)
        difference = self.probe(asked, completions, PROBE)
        if not difference <= self.stage.max_mismatch:  # a few completions are a small sample
            difference = self.probe(asked, completions, len(completions))
        require_fresh(difference, self.stage.max_mismatch, step)
        samples = [
            judged(prompt.messages, prompt.mode, prompt.ids, completion, self.scorer.thinking, self.chat,
                   self.tokenizer, prompt.task)
            for prompt, completion in zip(asked, completions, strict=True)
        ]  # fmt: skip
        judged_at = time.perf_counter()
        scores = self.rewards.components(samples)
        total = self.rewards.combine(scores)
        tally = Tally()
        tally.add((sample.answer for sample in samples), total)
        metrics = {
            "mismatch": difference,
            "rollout_tokens_per_s": tokens / seconds,
            "rollout_s": seconds,
            "sync_s": sync_s,
            "reward_s": time.perf_counter() - judged_at,
            "forced_share": sum(sum(completion.forced) for completion in completions) / tokens,
            "closed_share": statistics.fmean(sample.closed for sample in samples),
            **{f"{REASON}{reason}": float(count) for reason, count in tally.reasons.items()},
        }
        if isinstance(self.engine, RestartingEngine):
            metrics["engines_lost"] = self.engine.lost
        self.keep_samples(asked, samples, scores, total, step)
        return Collected(
            prompt_ids=[list(prompt.ids) for prompt in asked],
            completion_ids=[list(completion.token_ids) for completion in completions],
            logprobs=[list(completion.logprobs) for completion in completions],
            trained=[[int(not forced) for forced in completion.forced] for completion in completions],
            rewards=scores,
            metrics=metrics,
        )

    def probe(self, asked: Sequence[Prompt], completions: Sequence[Completion], count: int) -> float:
        """The mismatch of engine and trainer over about ``count`` completions, spread over the prompts."""
        places = range(0, len(completions), max(1, len(completions) // count))
        scores = self.scorer.score([[*asked[place].ids, *completions[place].token_ids] for place in places])
        return mismatch(
            [completions[place].logprobs for place in places],
            [score[len(asked[place].ids) - 1 :] for place, score in zip(places, scores, strict=True)],
            [completions[place].forced for place in places],
        )

    def keep_samples(
        self, asked: Sequence[Prompt], samples: Sequence[Sample], scores: Mapping[str, list[float]],
        total: Sequence[float], step: int,
    ) -> None:  # fmt: skip
        """The best and the worst answer to the step's first prompt, every so often."""
        if step % max(1, self.steps // SAMPLE_TABLES):
            return
        group = range(self.stage.group_size)
        for place in sorted({max(group, key=total.__getitem__), min(group, key=total.__getitem__)}):
            sample = samples[place]
            self.log.sample(
                kind="grpo", step=step, domain=asked[place].domain, prompt=sample.messages[-1].content,
                thinking=sample.answer.reasoning, answer=sample.answer.content, reward=total[place],
                budget=sample.thinking_budget, faults=list(sample.answer.faults),
                rewards={name: values[place] for name, values in scores.items()},
            )  # fmt: skip


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

    total = ends("reward")
    counted: Counter[str] = Counter()
    for row in rows:
        counted.update({name: round(value) for name, value in row.items() if name.startswith(REASON)})
    tally = Tally(config.train.batch_size * len(rows), Counter({n.removeprefix(REASON): c for n, c in counted.items()}))
    groups = config.train.batch_size // config.group_size
    return {
        "reward_first": total["first"],
        "reward_last": total["last"],
        **{f"reward_{name}": ends(f"rewards/{name}/mean") for name in config.reward},
        "steps": len(rows),
        "answers": tally.as_dict(),
        "groups": groups * len(rows),
        "groups_without_signal": round(sum(row["frac_reward_zero_std"] for row in rows) * groups),
        "mismatch_max": max(row["mismatch"] for row in rows),
        "rollout_tokens_per_s": statistics.fmean(row["rollout_tokens_per_s"] for row in rows),
        "step_s": statistics.fmean(row["step_time"] for row in rows),
    }
