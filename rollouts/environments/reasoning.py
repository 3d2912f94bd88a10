"""A data set of reasoning-gym as an environment of one turn, judged by its own verifier."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanoalign.data_recipes.conversation import Answer, Conversation, Message
from nanoalign.data_recipes.generators import generate
from nanoalign.rollouts.environments.base import Outcome, Task

TEST_TASKS = 200


@dataclass
class SingleAnswer:
    """An episode of one answer, judged when it is over."""

    task: Conversation
    answer: Answer | None = None

    def step(self, answer: Answer) -> Sequence[Message]:
        """Keeps the answer; nothing follows. Raises RuntimeError after the end."""
        if self.answer is not None:
            raise RuntimeError("the episode is over: start another one")
        self.answer = answer
        return ()

    def success(self) -> bool:
        return _score([self])[0] >= 1


class ReasoningGym:
    """``samples`` training tasks of one data set, and 200 test tasks; no question is in both."""

    def __init__(self, dataset: str, samples: int = 1000, seed: int = 0) -> None:
        """Raises ConfigError for an unknown data set, and DataError where it has fewer questions."""
        self.name = f"reasoning-gym:{dataset}"
        self._sizes = {"train": samples, "test": TEST_TASKS}
        self._seed = seed
        self._tasks: dict[str, dict[str, Conversation]] = {}

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in self._tasks:
            made = generate(self.name, self._sizes[split], "test" if split == "test" else "train", self._seed)
            self._tasks[split] = {each.id: each for each in made}
        return [
            Task(each.id, tuple(message for message in each.messages if message.role != "assistant"), (), split, {})
            for each in self._tasks[split].values()
        ]

    def start(self, task: Task) -> SingleAnswer:
        return SingleAnswer(self._tasks[task.split][task.id])

    def end_all(self, episodes: Sequence[SingleAnswer]) -> list[Outcome]:
        """All answers are judged together, in the verifiers' processes."""
        return [Outcome(score >= 1, score) for score in _score(episodes)]


def _score(episodes: Sequence[SingleAnswer]) -> list[float]:
    """The verifier's scores; no answer earns nothing."""
    from nanoalign.reward.base import Sample
    from nanoalign.reward.compose import make_reward

    samples = [
        Sample(each.task.messages[:1], each.answer or Answer(""), each.task.task or {}) for each in episodes
    ]  # fmt: skip
    return [float(score) for score in make_reward({"task": 1.0}).score(samples)]
