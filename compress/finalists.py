"""The candidates with the least loss: written, distilled for a little, measured, and one of them chosen."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.stage import PartLog, StageContext
from nanoalign.compress.config import CompressStage
from nanoalign.compress.importance import Scores, choose
from nanoalign.compress.record import Record
from nanoalign.compress.search import Candidate
from nanoalign.compress.surgery import write_pruned, write_table
from nanoalign.compress.vllm_speed import can_measure, measured
from nanoalign.data_recipes.config import Mixture
from nanoalign.evaluation.config import Suite
from nanoalign.models.model_folder import read_config
from nanoalign.rollouts.base import Mode

if TYPE_CHECKING:
    from nanoalign.data_recipes.prepared import Prepared


@dataclass(frozen=True)
class Finalists:
    """What the comparison needs."""

    config: CompressStage
    mixtures: Mapping[str, Mixture]
    suites: Mapping[str, Suite]
    context: StageContext
    record: Record
    scores: Scores
    prepared: "Prepared"
    device: str

    def choose(self, best: Sequence[Candidate]) -> Candidate:
        """Writes and measures each, and moves the best one's model to the stage's ``model/``.

        The most accurate on the suite is chosen; without one that of the least divergence from the whole model after
        its distillation, or, where there was none, of the least loss.

        Raises:
            ConfigError: none reaches the floor of throughput as vLLM measures it.
        """
        final = self.context.folder / "model"
        done = {each.name: each for each in best}.get(self.record.content["chosen"])
        if done is None or not final.is_dir():
            for number, candidate in enumerate(best, 1):
                self._measure(candidate, f"finalist {number} of {len(best)}")
                self.context.log.metrics(number, len(best), phase="finalists", **self._numbers(candidate))
            done = min(self._fast(best), key=self._rank)
            self._settle(done, final)
        shutil.rmtree(self.context.folder / "candidates", ignore_errors=True)
        return done

    def _measure(self, candidate: Candidate, phase: str) -> None:
        """One finalist's model, and whatever the recipe asks to know of it; ``phase`` is for the log."""
        place, row = self._place(candidate), self.record.row(candidate)
        if not (place / "pruned").is_dir():
            source = self.context.inputs["from"]
            shape = read_config(source)
            kept = choose(self.scores, shape, candidate.blocks, candidate.sizes)
            table = write_pruned(source, kept, candidate.sizes, place / "pruned")
            write_table(table, place / "tensors.jsonl")
        if self.config.distill is not None and "distilled" not in row:
            self.record.note(candidate, **self._distilled(place, phase))
        if self.config.suite is not None and "accuracy" not in row:
            self.record.note(candidate, accuracy=self._accuracy(self._model(place)).as_dict())
        if self.config.throughput.measure and can_measure(self.device) and "measured_tokens_per_s" not in row:
            speed = measured(self._model(place), self.config.throughput, self.config.memory)
            self.record.note(candidate, measured_tokens_per_s=speed)
        self.record.note(candidate, finalist=True)

    def _distilled(self, place: Path, phase: str) -> dict[str, Any]:
        """Figures of a brief distillation; losses are of the samples that it holds out."""
        from nanoalign.sft.distill import distil_briefly

        settings = self.config.distill
        assert settings is not None
        context = replace(self.context, folder=place, inputs={}, log=PartLog(place, self.context.log, phase))
        figures = distil_briefly(
            place / "pruned", self.context.inputs["from"], self.prepared, settings.train, context, settings.pack,
            temperature=settings.temperature, top_k=settings.top_k,
        )  # fmt: skip
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        names = {"distilled_loss": "held_out_loss_last", "distilled_kl": "held_out_kl_last",
                 "pruned_kl": "held_out_kl_first", "distilled_tokens": "tokens"}  # fmt: skip
        return {"distilled": True} | {name: figures[key] for name, key in names.items() if key in figures}

    def _accuracy(self, model: Path) -> Any:
        """Of the suite's answers with thinking on."""
        from nanoalign.data_recipes.chat import chat_format
        from nanoalign.evaluation.suites import evaluate, load_suite, suite_reward
        from nanoalign.models.loading import load_tokenizer
        from nanoalign.rollouts import open_for_eval

        name, rollouts, context = self.config.suite, self.config.rollouts, self.context
        assert name is not None and rollouts is not None
        chat, tokenizer, suite = chat_format(context.chat), load_tokenizer(model), self.suites[name]
        tasks = load_suite(name, suite, self.mixtures, context.data_root, context.seed, chat)
        reward = suite_reward(suite, context.inputs, self.device)
        engine = open_for_eval(rollouts, model, tokenizer, chat, self.device, exchange=context.folder / "exchange")
        try:
            return evaluate(engine, chat, tokenizer, tasks, Mode(True), reward, rollouts, context.seed).score
        finally:
            engine.close()

    def _fast(self, best: Sequence[Candidate]) -> list[Candidate]:
        """Those that reach the floor as far as it was measured."""
        floor = self.config.throughput.floor
        speeds = {each.name: self.record.row(each).get("measured_tokens_per_s", each.tokens_per_s) for each in best}
        fast = [each for each in best if speeds[each.name] >= floor]
        if not fast:
            raise ConfigError(
                f"throughput.floor: none of the {len(best)} candidates kept reaches {floor:g} tokens/s; the fastest "
                f"reaches {max(speeds.values()):.1f}"
            )
        return fast

    def _rank(self, candidate: Candidate) -> tuple[float, float]:
        row = self.record.row(candidate)
        accuracy = row["accuracy"]["value"] if "accuracy" in row else 0.0
        return -accuracy, row.get("distilled_kl", row["loss"])

    def _settle(self, chosen: Candidate, final: Path) -> None:
        place = self._place(chosen)
        shutil.copyfile(place / "tensors.jsonl", self.context.folder / "tensors.jsonl")
        self.record.choose(chosen)
        os.replace(self._model(place), final)

    def _numbers(self, candidate: Candidate) -> dict[str, float]:
        row = self.record.row(candidate)
        numbers = {name: row[name] for name in ("loss", "distilled_loss", "measured_tokens_per_s") if name in row}
        return numbers | ({"accuracy": row["accuracy"]["value"]} if "accuracy" in row else {})

    def _place(self, candidate: Candidate) -> Path:
        return self.context.folder / "candidates" / candidate.name

    def _model(self, place: Path) -> Path:
        return place / ("model" if self.config.distill is not None else "pruned")
