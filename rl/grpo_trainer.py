"""The GRPO step on the common trainer: completions in, one optimizer step out.

Shapes: B completions, P prompt columns (padded on the left), C completion columns (padded on the right), K rewards.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer import add_fused_lm_head

from nanoalign.common.errors import ConfigError
from nanoalign.common.processes import shared
from nanoalign.common.stage import StageLog
from nanoalign.models.adapters import base_of
from nanoalign.models.config import EarlyStop
from nanoalign.models.fp8_layers import use_fp8
from nanoalign.models.held_out import HeldOut
from nanoalign.models.isolation import require_isolation
from nanoalign.models.labels import IGNORED
from nanoalign.models.packed_attention import packed_inputs
from nanoalign.models.packing import pack
from nanoalign.models.size import attention_cost
from nanoalign.models.training import RecipeTrainer, training_arguments
from nanoalign.models.zero3 import gather_blocks
from nanoalign.rl.collect import Collect, Collected
from nanoalign.rl.config import GRPOStage
from nanoalign.rl.loss import LOSSES, Whole, advantages, behaviour, kl_to, reduce, token_losses
from nanoalign.rl.rows import Rows, with_rest
from nanoalign.rl.shares import share_out

Measure = Callable[[int, int, int], list[list[float]]]
"""(optimizer steps taken, this process's number, processes) to rewards of what is held out: a row an answer, this
process's part of them."""

HELD_OUT = "held_out_reward"


class PolicyTrainer(RecipeTrainer):
    """GRPO on a :data:`Collect`. A step's completions are a function of its number, so a resumed run asks for the same
    ones."""

    fp8_in_eval = True
    """An engine that samples with the trainer's own weights, in process, samples from the policy that is trained."""

    def __init__(
        self, *args: Any, log: StageLog, stage: GRPOStage, collect: Collect, correct_engine: bool,
        reference: PreTrainedModel | None, measure: Measure | None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """``correct_engine``: the engine's log-probabilities are the old ones of the importance ratio, so that clipping
        bounds what a difference between engine and trainer can do (for engines with weights of their own).
        ``reference``: the model that `kl` ties to; None is the model without its adapters. ``measure``: what
        `train.evaluate_every` asks; None measures nothing.
        """
        super().__init__(*args, log=log, **kwargs)
        self.stage_log = log
        self.split = is_deepspeed_zero3_enabled()
        self.model_accepts_loss_kwargs = True  # a micro-batch's loss is its part of the step's already
        self.stage, self.collect, self.correct_engine = stage, collect, correct_engine
        self.measure = measure
        if measure is not None and (every := stage.train.evaluate_every) is not None:
            self.add_callback(_FromStart(self.log_held_out_reward, every, stage.train.early_stop, self.log))
        self.objective = LOSSES[stage.loss]
        for model in (self.model, reference):
            if model is not None:
                # The head in float32, as rollouts/hf.py has it: bfloat16 rounds a logit of 20 by up to 0.06, which is
                # most of what engine and trainer would differ by.
                add_fused_lm_head(
                    base_of(model), stage.rollouts.temperature, cast_lm_head_to_fp32=self.args.bf16,
                    outputs=("log_probs", "entropy"),
                )  # fmt: skip
        if reference is not None:
            if self.recipe.precision == "fp8":
                use_fp8(reference, always=True)  # as the policy it is compared with
            reference = reference.to(self.args.device).eval()
            if self.split:
                reference = prepare_deepspeed(reference, self.accelerator)
        self.reference = reference
        self.tokens = torch.zeros(())
        """Trained tokens of the step, divided by the number of processes."""
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        """Sums over the step's trained tokens on this process, and their number as ``tokens``."""
        sizes = [getattr(weight, "ds_numel", weight.numel()) for weight in self.model.parameters()]
        self.quadratic = attention_cost(self.model.config.to_dict(), sum(sizes))
        """What a token before another costs in attention, of what a token costs in all weights."""
        self.isolated = False
        """Whether a real pack of several completions was checked."""
        self.logged: dict[str, list[float]] = defaultdict(list)
        """Figures since the last row of the log, which has their means."""

    def get_train_dataloader(self) -> DataLoader:
        """Counts steps: what is in them comes from :meth:`collect_step`."""
        return DataLoader(range(self.args.max_steps), collate_fn=lambda numbers: {})

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        started = time.perf_counter()
        micro_batches = self.collect_step()
        collected_at = time.perf_counter()
        if self.stage.pack_tokens and not self.isolated:
            fullest = max(micro_batches, key=lambda rows: len(rows.prompt_ids))
            if self.split:  # all processes gather weights as often as one does: they check the same pack
                fullest = shared(fullest.to("cpu")).to(self.args.device)
            if len(fullest.prompt_ids) > 1:  # one alone has no other that it could see
                with self.accelerator.autocast():
                    require_isolation(self.model, self.packed(fullest))
                self.isolated = True
        micro_batches = self.whole_episodes(micro_batches)
        losses = []
        for number, rows in enumerate(micro_batches, 1):
            # gradients meet those of other processes with the last micro-batch
            last = number == len(micro_batches)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last or self.is_deepspeed_enabled else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, {"rows": rows}, self.tokens))
        totals = self.accelerator.reduce(torch.stack([*self.sums.values()]).float(), "sum").tolist()
        sums = dict(zip(self.sums, totals, strict=True))
        tokens = max(1.0, sums.pop("tokens"))
        for name, total in sums.items():
            self.logged[name].append(total / tokens)
        self.sums.clear()
        ended = time.perf_counter()
        self.logged["step_time"].append(ended - started)
        self.logged["train_s"].append(ended - collected_at)
        return torch.stack(losses).sum()

    def readable(self) -> AbstractContextManager[Any]:
        """In here an engine on the trainer's own weights reads them whole: each process generates at its own pace."""
        if self.split and self.stage.rollouts.engine.kind == "hf":
            return unwrap_model_for_generation(self.model_wrapped, self.accelerator)
        return nullcontext()

    def log_held_out_reward(self) -> float:
        """The mean reward on what is held out, which the log's next row has."""
        assert self.measure is not None
        started = time.perf_counter()
        processes = (self.accelerator.process_index, self.accelerator.num_processes)
        with self.readable():
            scores_BK = gather_object(self.measure(self.state.global_step, *processes))
        for name, column in zip(self.stage.weights, zip(*scores_BK, strict=True), strict=True):
            self.logged[f"held_out_rewards/{name}/mean"] = [fmean(column)]
        weights = self.stage.weights.values()
        rewards_B = [sum(weight * score for weight, score in zip(weights, row, strict=True)) for row in scores_BK]
        reward = fmean(rewards_B)
        if self.is_world_process_zero():
            self.stage_log.held_out(self.state.global_step, rewards_B)
        self.logged[HELD_OUT], self.logged["held_out_s"] = [reward], [time.perf_counter() - started]
        return reward

    def collect_step(self) -> list[Rows]:
        """Fetches the step's completions, and cuts them into micro-batches."""
        count = self.args.per_device_train_batch_size
        first = self.accelerator.process_index * count
        with self.readable():
            collected = self.collect(self.state.global_step, first, count)
        device = self.args.device
        scores_BK = self.accelerator.gather(
            torch.tensor([collected.rewards[name] for name in self.stage.weights], device=device).T.contiguous()
        )
        if not torch.isfinite(scores_BK).all():
            name = list(self.stage.weights)[int((~torch.isfinite(scores_BK)).any(0).nonzero()[0])]
            raise ConfigError(f"reward {name!r} returned a value that is not finite")
        weights_K = torch.tensor(list(self.stage.weights.values()), device=device)
        rewards_B, advantages_B, deviation_B = advantages(
            scores_BK, weights_K, self.stage.group_size, self.objective.scaled
        )
        columns = (collected.prompt_ids, collected.completion_ids, collected.logprobs, collected.trained)
        prompts, completions, logprobs, trained = (
            [torch.tensor(x, device=device) for x in column] for column in columns
        )
        of_B = torch.arange(count) if collected.episodes is None else torch.tensor(collected.episodes)
        of_B = of_B.to(device)
        tokens_B = torch.stack([each.sum() for each in trained])
        tokens_B = tokens_B.new_zeros(count).index_add(0, of_B, tokens_B)[of_B]
        rows = Rows(
            prompts, completions, logprobs, trained, advantages_B[first + of_B], first + of_B, tokens_B,
            torch.zeros(len(of_B), device=device),
        )  # fmt: skip
        self.tokens = self._log_step(collected, scores_BK, rewards_B, deviation_B)
        if self.stage.pack_tokens:
            return self.packs(rows, self.stage.pack_tokens)
        micro = self.stage.train.micro_batch(self.accelerator.num_processes)
        places = torch.randperm(len(rows.prompt_ids)).split(micro)
        return self.evened([self.with_signal(rows.take(each)) for each in places])

    def with_signal(self, rows: Rows) -> Rows:
        """The rows with an advantage: others add nothing to the gradient where there is no KL term. One row is always
        kept, for a loss to differentiate."""
        places = rows.advantages_B.nonzero().flatten()
        if self.stage.kl or len(places) == len(rows.advantages_B):
            return rows
        return rows.take(places if len(places) else torch.tensor([0]))

    def packs(self, rows: Rows, capacity: int) -> list[Rows]:
        """The rows in micro-batches of at most ``capacity`` tokens (more only for a longer row). Several processes
        share out the rows of all, so that each has about as much to compute."""
        rows = self.with_signal(rows)
        if self.accelerator.num_processes == 1:
            chosen = pack(rows.lengths, capacity, "drop")
            return [rows.take(torch.tensor(places)) for places in (*chosen, *([place] for place in chosen.dropped))]
        rows = self.with_signal(Rows.joined(gather_object([rows.to("cpu")])))
        shares = share_out(rows.lengths, capacity, self.accelerator.num_processes, self.quadratic)
        # all processes compute as often: one without a row computes the shortest, and nothing to train on
        idle = rows.take(torch.tensor([min(range(len(rows.lengths)), key=rows.lengths.__getitem__)])).untrained()
        own = shares[self.accelerator.process_index]
        return [(rows.take(torch.tensor(places)) if places else idle).to(self.args.device) for places in own]

    def evened(self, batches: list[Rows]) -> list[Rows]:
        """Equally many micro-batches on every process: the last one is repeated, with nothing to train on, where a
        process has fewer."""
        most = int(self.accelerator.gather(torch.tensor([len(batches)], device=self.args.device)).max())
        return batches + [batches[-1].untrained()] * (most - len(batches))

    def whole_episodes(self, micro_batches: list[Rows]) -> list[Rows]:
        """The rows, each knowing the log-ratio of the rest of its episode: where episodes were cut into several rows,
        which may be in different micro-batches and on different processes, and are corrected as a whole. That takes a
        forward pass more."""
        correction = self.stage.correction
        if not self.correct_engine or not (
            correction == "sequence" or (correction == "clip" and self.objective.ratio == "sequence")
        ):
            return micro_batches
        parts = Counter(gather_object([each for rows in micro_batches for each in rows.trained_episodes]))
        if max(parts.values(), default=0) < 2:
            return micro_batches
        sums = []
        with torch.no_grad():
            for rows in micro_batches:
                trained_BC = pad_sequence(rows.trained, batch_first=True)
                apart_BC = self.logprobs(self.model, rows)[0] - self.engine_logprobs(rows, trained_BC)
                sums.append((apart_BC * trained_BC).sum(1).double())
        own = [pair for rows, sums_B in zip(micro_batches, sums, strict=True)
               for pair in zip(rows.episodes_B.tolist(), sums_B.tolist(), strict=True)]  # fmt: skip
        pairs = gather_object(own)
        return [with_rest(rows, sums_B, pairs) for rows, sums_B in zip(micro_batches, sums, strict=True)]

    def engine_logprobs(self, rows: Rows, trained_BC: Tensor) -> Tensor:
        """The engine's log-probabilities (B, C). Engines report forced tokens as they like (-9999, over HTTP): their
        ratio could be infinite, and times the mask's 0 not a number."""
        return pad_sequence(rows.logprobs, batch_first=True).masked_fill(trained_BC == 0, 0.0)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Tensor:
        """One micro-batch's part of the step's loss."""
        rows: Rows = inputs["rows"]
        trained_BC = pad_sequence(rows.trained, batch_first=True)
        logprobs_BC, entropy_BC = self.logprobs(model, rows)
        old_BC, weight = logprobs_BC.detach(), torch.ones_like(logprobs_BC)
        whole = Whole(rows.tokens_B, rows.elsewhere_B)
        if self.correct_engine:
            old_BC, weight = behaviour(
                self.stage.correction, logprobs_BC, self.engine_logprobs(rows, trained_BC), trained_BC,
                self.stage.importance_cap, whole,
            )  # fmt: skip
            if self.stage.correction != "clip":  # the loss's own ratio is 1, in all rows
                whole = replace(whole, elsewhere_B=torch.zeros_like(whole.elsewhere_B))
        found = token_losses(
            self.objective, logprobs_BC, old_BC, trained_BC, rows.advantages_B.unsqueeze(1), self.stage.clip, whole
        )
        losses_BC, logged = found.losses_BC * weight, {"entropy": entropy_BC}
        if self.correct_engine and self.stage.correction != "clip":
            logged |= {"importance/mean": weight, "importance/capped": weight >= self.stage.importance_cap}
        if self.stage.kl:
            logged["kl"] = kl_to(self.reference_logprobs(model, rows), logprobs_BC, found.ratio * weight, trained_BC)
            losses_BC = losses_BC + self.stage.kl * logged["kl"]
        logged |= {"clip_ratio/low_mean": found.below, "clip_ratio/high_mean": found.above}
        logged["clip_ratio/region_mean"] = found.below | found.above
        for name, values in logged.items():
            self.sums[name] = self.sums[name] + (values.detach().expand_as(trained_BC) * trained_BC).sum()
        self.sums["tokens"] = self.sums["tokens"] + trained_BC.sum()
        completions, longest = self.args.per_device_train_batch_size, self.stage.rollouts.max_tokens
        return reduce(self.objective, losses_BC, trained_BC, completions, self.tokens, longest, whole)

    def logprobs(self, model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
        """Each completion token's log-probability at the sampling temperature, and the entropy there, both (B, C)."""
        batch = self.packed(rows) if self.stage.pack_tokens else self.padded(rows)
        with self.accelerator.autocast():
            outputs = model(**batch, fused_lm_head=True)
        counted_BT = batch["labels"][:, 1:] != IGNORED
        lengths = [len(ids) for ids in rows.completion_ids]
        logprobs_BC, entropy_BC = (
            pad_sequence(list(values_BT[counted_BT].split(lengths)), batch_first=True)
            for values_BT in (outputs.log_probs, outputs.entropy)
        )
        return logprobs_BC, entropy_BC

    def padded(self, rows: Rows) -> dict[str, Tensor]:
        """A model's inputs, (B, T): prompts padded on the left, completions on the right."""
        sequences = [torch.cat(pair) for pair in zip(rows.prompt_ids, rows.completion_ids, strict=True)]
        prompt = max(len(ids) for ids in rows.prompt_ids)
        longest = prompt + max(len(ids) for ids in rows.completion_ids)
        ids_BT = sequences[0].new_full((len(sequences), longest), self.processing_class.pad_token_id)
        labels_BT, mask_BT = torch.full_like(ids_BT, IGNORED), torch.zeros_like(ids_BT)
        for row, (ids, completion) in enumerate(zip(sequences, rows.completion_ids, strict=True)):
            end = prompt + len(completion)
            ids_BT[row, end - len(ids) : end], mask_BT[row, end - len(ids) : end] = ids, 1
            labels_BT[row, prompt:end] = completion
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}

    def packed(self, rows: Rows) -> dict[str, Any]:
        """A model's inputs: prompts and completions laid end to end, (1, T), each pair a document of its own."""
        pairs = list(zip(rows.prompt_ids, rows.completion_ids, strict=True))
        ids = torch.cat([piece for pair in pairs for piece in pair])
        labels = torch.cat([torch.cat([torch.full_like(prompt, IGNORED), completion]) for prompt, completion in pairs])
        lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
        inputs = packed_inputs(lengths, device=ids.device)
        return {"input_ids": ids.unsqueeze(0), "labels": labels.unsqueeze(0), **inputs}

    @torch.no_grad()
    def reference_logprobs(self, model: nn.Module, rows: Rows) -> Tensor:
        """:meth:`logprobs` under the model that the stage started from."""
        if self.reference is not None:
            return self.logprobs(self.reference, rows)[0]
        with self.accelerator.unwrap_model(model).disable_adapter():
            return self.logprobs(model, rows)[0]

    def _log_step(self, collected: Collected, scores_BK: Tensor, rewards_B: Tensor, deviation_B: Tensor) -> Tensor:
        """Notes the step's figures; returns its trained tokens, divided by the number of processes."""
        columns = (collected.prompt_ids, collected.completion_ids, collected.trained)
        own = [(len(prompt), len(ids), sum(trained)) for prompt, ids, trained in zip(*columns, strict=True)]
        lengths_B3 = torch.tensor(gather_object(own), device=self.args.device)  # processes may have more rows or fewer
        self.state.num_input_tokens_seen += int(lengths_B3[:, [0, 2]].sum())
        completion_B = lengths_B3[:, 2].float()
        figures = {
            "reward": rewards_B.mean(), "reward_std": rewards_B.std(),
            "frac_reward_zero_std": torch.isclose(deviation_B, torch.zeros_like(deviation_B)).float().mean(),
            "completions/mean_length": completion_B.mean(), "completions/min_length": completion_B.min(),
            "completions/max_length": completion_B.max(),
        }  # fmt: skip
        for name, column_B in zip(self.stage.weights, scores_BK.T, strict=True):
            figures |= {f"rewards/{name}/mean": column_B.mean(), f"rewards/{name}/std": column_B.std()}
        parts = gather_object([(collected.metrics, collected.counts)])
        for name in collected.metrics:
            self.logged[name].append(fmean(metrics[name] for metrics, _ in parts))
        for name, count in sum((counts for _, counts in parts), Counter()).items():
            self.logged[name].append(float(count))
        for name, value in figures.items():
            self.logged[name].append(float(value))
        return lengths_B3[:, 2].sum() / self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, **{name: fmean(values) for name, values in self.logged.items()}}, start_time)
        self.logged.clear()


class _FromStart(HeldOut):
    """Measures before the first step too, and after the last."""

    def __init__(
        self, measure: Callable[[], float], every: int, stop: EarlyStop | None, log: Callable[[dict[str, float]], None]
    ) -> None:
        super().__init__(measure, every, stop, larger=True, at_end=True)
        self.log = log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0:
            self.measure()
            self.log({})


def grpo_arguments(stage: GRPOStage, folder: Path, device: str, seed: int, steps: int) -> TrainingArguments:
    """Arguments for ``steps`` optimizer steps; checkpoints in ``folder``. Made before the model is loaded: ZeRO-3 then
    splits it while it loads.

    Raises:
        ConfigError: the batch is not a multiple of the group, the sampling is greedy, or as
            :func:`models.training.training_arguments`.
    """
    batch = stage.train.batch_size
    if batch % stage.group_size:
        raise ConfigError(f"train.batch_size: {batch} is not a multiple of group_size {stage.group_size}")
    if stage.rollouts.temperature == 0:
        raise ConfigError("rollouts.temperature: 0 samples the same completion every time; GRPO needs different ones")
    return training_arguments(
        stage.train, folder, batch, device, seed, max_steps=steps, include_num_input_tokens_seen="no",
        ddp_timeout=stage.rollouts.longest_wait_s(),
        gradient_accumulation_steps=1,
        per_device_train_batch_size=batch // int(os.environ.get("WORLD_SIZE", "1")),
    )  # fmt: skip


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    stage: GRPOStage,
    arguments: TrainingArguments,
    collect: Collect,
    log: StageLog,
    *,
    correct_engine: bool = False,
    reference: PreTrainedModel | None = None,
    measure: Measure | None = None,
) -> PolicyTrainer:
    """A trainer of as many optimizer steps as :func:`grpo_arguments` were made for."""
    if is_deepspeed_zero3_enabled():
        for each in (model, reference):
            if each is not None:
                gather_blocks(each)
    return PolicyTrainer(
        model=model, args=arguments, train_dataset=range(arguments.max_steps * stage.train.batch_size),
        processing_class=tokenizer, train=stage.train, log=log, stage=stage, collect=collect,
        correct_engine=correct_engine, reference=reference, measure=measure,
    )  # fmt: skip
