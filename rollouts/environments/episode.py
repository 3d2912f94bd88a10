"""An attempt at a task in any simulator that answers calls with text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanoalign.data_recipes.conversation import Answer, Message


@dataclass
class ToolEpisode:
    """Runs the assistant's calls, in order; over at the first message without a call."""

    call: Callable[[str, Mapping[str, Any]], str]
    """The simulator, with a state of this episode's own."""
    is_solved: Callable[[], bool]
    """Whether that state is the reference's now."""
    changed: Callable[[], tuple[frozenset[Any], frozenset[Any]]] | None = None
    """What differs from the beginning in that state, and in the reference's."""
    over: bool = field(default=False, init=False)

    def step(self, answer: Answer) -> Sequence[Message]:
        """One answer in, its calls' results out. Raises RuntimeError after the end."""
        if self.over:
            raise RuntimeError("the episode is over: start another one")
        results = [Message("tool", self.call(call.name, call.arguments)) for call in answer.tool_calls]
        self.over = not results
        return results

    def success(self) -> bool:
        """Whether the end state is the reference's and the assistant ended the episode itself."""
        return self.over and self.is_solved()

    def credit(self) -> float:
        """How much of what changed, or should have, changed as it should: 1 in the reference's state, 0 where nothing
        is right."""
        if self.changed is None:
            return float(self.is_solved())
        ours, wanted = self.changed()
        return len(ours & wanted) / len(ours | wanted) if ours or wanted else 1.0
