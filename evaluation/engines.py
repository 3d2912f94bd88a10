"""One engine for all checkpoints and suites."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanoalign.data_recipes.chat.base import ChatFormat
from nanoalign.evaluation.suites import Job, SuiteResult, evaluate_all
from nanoalign.rollouts.base import Mode, RolloutEngine
from nanoalign.rollouts.config import Rollouts


class Engines:
    """One engine after another; a vLLM is started once and given each checkpoint's weights, as its start takes longer
    than most evaluations."""

    def __init__(self, rollouts: Rollouts, chat: ChatFormat, device: str, exchange: Path | None) -> None:
        self.rollouts, self.chat, self.device, self.exchange = rollouts, chat, device, exchange
        self.engine: RolloutEngine | None = None

    def at(self, folder: Path, tokenizer: Any) -> RolloutEngine:
        from nanoalign.models.loading import resolve
        from nanoalign.models.weights import stored_weights
        from nanoalign.rollouts import open_for_eval

        if self.engine is not None and self.rollouts.engine.kind != "hf":
            self.engine.load_weights(stored_weights(resolve(folder)))
            return self.engine
        self.close()
        self.engine = open_for_eval(self.rollouts, folder, tokenizer, self.chat, self.device, exchange=self.exchange)
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def measure(
        self, folder: Path, jobs: Sequence[Job], tokenizer: Any, records: Path, seed: int,
        done: Callable[[Job, SuiteResult], None], ended: Callable[[int, int], None] = lambda answers, of: None,
    ) -> dict[tuple[str, Mode], SuiteResult]:  # fmt: skip
        """All jobs on a checkpoint, by suite and mode. A vLLM gets all questions at once; in process, where what shares
        a batch may change the last bits, suites and modes go one after another."""
        engine = self.at(folder, tokenizer)
        groups = [[job] for job in jobs] if self.rollouts.engine.kind == "hf" else [list(jobs)]
        told: dict[str, Any] = {"folder": records, "done": done, "ended": ended}
        results = [
            result for group in groups for result in evaluate_all(engine, self.chat, tokenizer, group, seed, **told)
        ]
        return {(job.tasks.name, job.mode): result for job, result in zip(jobs, results, strict=True)}
