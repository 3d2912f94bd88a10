"""Further figures of benchmarks, besides the mean of their scores."""

from collections.abc import Sequence

from nanoalign.common.intervals import Estimate, bounded, proportion
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.evaluation.result import CORRECT
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


def bfcl(tasks: Sequence[Conversation], samples: Sequence[Sample], scores: Sequence[float]) -> dict[str, Estimate]:
    """``category_mean``: the mean of the categories' accuracies, each counted once, as BFCL's own tables have it."""
    each = len(scores) // len(tasks)
    domains = [task.domain for task in tasks for _ in range(each)]
    shares = [
        _share([score >= CORRECT for score, own in zip(scores, domains) if own == domain]) for domain in set(domains)
    ]
    value = sum(share.value for share in shares) / len(shares)
    variance = sum(share.value * (1 - share.value) / share.n for share in shares) / len(shares) ** 2
    return {"category_mean": bounded(value, variance, len(scores))}


def _share(held: Sequence[bool]) -> Estimate:
    return proportion(sum(held), len(held))
