"""Further figures of benchmarks, besides the mean of their scores."""

from collections.abc import Sequence

from nanoalign.common.intervals import Estimate, proportion
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.reward.base import Sample
from nanoalign.reward.instructions.checkers import follows


def ifeval(tasks: Sequence[Conversation], samples: Sequence[Sample], scores: Sequence[float]) -> dict[str, Estimate]:
    """IFEval's other three: ``prompt_loose``, and per instruction ``instruction_strict`` and ``instruction_loose``."""
    strict, loose = (
        [
            [
                not sample.malformed and follows(sample.answer.content, item["id"], item["kwargs"], loose=lenient)
                for item in sample.task["instructions"]
            ]
            for sample in samples
        ]
        for lenient in (False, True)
    )
    return {
        "prompt_loose": _share([all(each) for each in loose]),
        "instruction_strict": _share([held for each in strict for held in each]),
        "instruction_loose": _share([held for each in loose for held in each]),
    }


def _share(held: Sequence[bool]) -> Estimate:
    return proportion(sum(held), len(held))
