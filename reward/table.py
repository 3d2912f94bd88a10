"""The rewards that a recipe may weigh. A new one is a line here and the function that it names."""

from dataclasses import dataclass

from nanoalign.common.table import Entry


@dataclass(frozen=True)
class RewardEntry(Entry):
    """``code`` is ``score(samples, means)``, one number a sample in order (see ``compose.Means``), or with ``each``
    ``score(sample)``."""

    each: bool = False
    kind: str = ""
    """The kind of task that it reads: ``any`` for every kind, empty where it reads no task."""
    verifier: bool = False
    """It is the one that ``task`` asks for tasks of its kind."""


REWARDS = {
    "task": RewardEntry(
        "nanoalign.reward.compose:score_tasks", "what the verifier of the task's kind finds", kind="any"),
    "math": RewardEntry(
        "nanoalign.reward.compose:score_math", "the final answer equals the task's", kind="math", verifier=True),
    "exact": RewardEntry(
        "nanoalign.reward.compose:score_exact", "the stated answer, or the whole text, is the task's, ignoring case",
        kind="exact", each=True, verifier=True),
    "instruction": RewardEntry(
        "nanoalign.reward.instructions.score:share_followed", "the share of the instructions that is followed",
        kind="instruction", each=True),
    "instruction_all": RewardEntry(
        "nanoalign.reward.instructions.score:all_followed", "all instructions are followed",
        kind="instruction", each=True, verifier=True),
    "instruction_loose": RewardEntry(
        "nanoalign.reward.instructions.score:share_loosely_followed", "the same share by IFEval's loose rule",
        kind="instruction", each=True),
    "ifeval": RewardEntry(
        "nanoalign.reward.instructions.score:followed_by_ifeval",
        "all instructions are followed by IFEval's strict rule, as published, which can be gamed",
        kind="instruction", each=True),
    "tools": RewardEntry(
        "nanoalign.reward.tools:score_tools", "the end state is right, or the calls match",
        kind="tools", each=True, verifier=True),
    "code": RewardEntry(
        "nanoalign.reward.compose:score_code", "all tests pass, in the sandbox", kind="code", verifier=True),
    "reasoning_gym": RewardEntry(
        "nanoalign.reward.compose:score_reasoning_gym", "reasoning-gym's own verifier gives full marks",
        kind="reasoning_gym", verifier=True),
    "bfcl_multi_turn": RewardEntry(
        "nanoalign.reward.tools:score_first_turn", "the first request's calls are made, in order, and no other",
        kind="bfcl_multi_turn", each=True, verifier=True),
    "ruler": RewardEntry(
        "nanoalign.reward.ruler:score_ruler", "the share of the answers that the text contains, or whether it has one",
        kind="ruler", each=True),
    "bfcl": RewardEntry(
        "nanoalign.reward.bfcl:score_bfcl", "BFCL's AST rule for one turn, as published, quirks included",
        kind="bfcl", each=True, verifier=True),
    "environment": RewardEntry(
        "nanoalign.reward.shape:score_environment", "what a GRPO stage's environment gives the episode", each=True),
    "format": RewardEntry(
        "nanoalign.reward.shape:score_format", "thinking was closed once, and an answer or a call follows", each=True),
    "length": RewardEntry(
        "nanoalign.reward.compose:score_lengths", "correctness times how well the thinking budget is kept", kind="any"),
    "preference": RewardEntry("nanoalign.reward.compose:score_preferences", "what a reward model prefers"),
    "judge": RewardEntry("nanoalign.reward.compose:score_judged", "what a judge behind an endpoint says"),
    "arena": RewardEntry(
        "nanoalign.reward.compose:score_arena", "the win rate against a task's baseline, by a judge, in both orders",
        kind="arena"),
}  # fmt: skip


def verifiers() -> dict[str, str]:
    """Kinds of task that can be verified, each with the name of its reward."""
    return {entry.kind: name for name, entry in REWARDS.items() if entry.verifier}
