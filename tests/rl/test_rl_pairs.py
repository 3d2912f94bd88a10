"""Which successes meet which failures, and at which turn."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.data_recipes.conversation import Answer
from nanoalign.rl.pairs import pair_up, parted
from nanoalign.rl.round_tasks import batches, differing
from nanoalign.rollouts.base import Completion, Mode
from nanoalign.rollouts.environments.base import Task
from nanoalign.rollouts.episodes import EpisodeRecord, Turn


def episode(task: str, sample: int, success: bool, *turns: tuple[tuple[int, ...], tuple[int, ...]]) -> EpisodeRecord:
    """Turns as (prompt ids, completion ids)."""
    message = Answer("")
    played = tuple(
        Turn(prompt, Completion(ids, tuple(0.0 for _ in ids), tuple(False for _ in ids), "stop"), message)
        for prompt, ids in turns
    )
    return EpisodeRecord(Task(task, (), (), "train", {}), sample, Mode(True), played, (), success, "done")


def test_episodes_part_at_the_deepest_shared_prompt():
    good = episode("a", 0, True, ((1,), (5,)), ((1, 5, 9), (6,)), ((1, 5, 9, 6), (7,)))
    bad = episode("a", 1, False, ((1,), (5, 5)), ((1, 5, 9), (8, 8)), ((1, 5, 9, 8), (7,)))
    pair = parted(good, bad)
    assert (pair.turn, pair.prompt_ids) == (1, (1, 5, 9))
    assert (pair.chosen.token_ids, pair.rejected.token_ids) == ((6,), (8, 8))


def test_episodes_of_different_prompts_do_not_pair():
    with pytest.raises(ValueError, match="share no prompt"):
        parted(episode("a", 0, True, ((1,), (5,))), episode("a", 1, False, ((2,), (5,))))


def test_pairings_prefer_what_they_say():
    good = episode("a", 0, True, ((1,), (5, 5, 5)), ((1, 5), (6, 6, 6, 6)))
    early = episode("a", 1, False, ((1,), (9, 9, 9)), ((1, 9), (7,)))
    late = episode("a", 2, False, ((1,), (5, 5)), ((1, 5), (8,)))
    by_length = pair_up([good, early, late], 1, "closest_length", 0)
    assert [(pair.turn, pair.length_gap) for pair in by_length] == [(0, 0)]
    by_prefix = pair_up([good, early, late], 1, "same_prefix", 0)
    assert [(pair.turn, pair.length_gap) for pair in by_prefix] == [(1, 3)]
    assert len(pair_up([good, early, late], 5, "random", 0)) == 2


def test_partial_credit_pairs_failures_only_where_nothing_succeeds():
    near, far, further = (
        replace(episode("a", i, False, ((1,), (5 + i,))), credit=credit) for i, credit in enumerate([0.5, 0.2, 0.0])
    )
    assert pair_up([near, far, further], 5, "random", 0) == []
    pairs = pair_up([near, far, further], 5, "random", 0, partial=True)
    assert {pair.chosen.token_ids for pair in pairs} == {(5,)}
    assert {pair.rejected.token_ids for pair in pairs} == {(6,), (7,)}
    success = episode("a", 3, True, ((1,), (9,)))
    assert {pair.chosen.token_ids for pair in pair_up([near, far, success], 5, "random", 0, partial=True)} == {(9,)}
    alike = [replace(each, credit=0.5) for each in (near, far)]
    assert pair_up(alike, 5, "random", 0, partial=True) == []


completions = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
outcomes = st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), completions), max_size=14)


@given(outcomes, st.integers(1, 4), st.sampled_from(["random", "closest_length", "same_prefix"]), st.integers(0, 9))
def test_pairs_are_of_one_task_unique_and_limited(outcomes, per_task, pairing, seed):
    outcomes.sort(key=lambda outcome: outcome[0])
    records = [episode(task, i, success, ((ord(task),), ids)) for i, (task, success, ids) in enumerate(outcomes)]
    pairs = pair_up(records, per_task, pairing, seed)
    assert pairs == pair_up(records, per_task, pairing, seed)
    assert len({(p.task, p.chosen.token_ids, p.rejected.token_ids) for p in pairs}) == len(pairs)
    for task in "ab":
        good = {record.turns[0].completion.token_ids for record in records if record.task.id == task and record.success}
        bad = {
            record.turns[0].completion.token_ids for record in records if record.task.id == task and not record.success
        }
        ours = [pair for pair in pairs if pair.task == task]
        possible = sum(chosen != rejected for chosen in good for rejected in bad)
        assert len(ours) == min(per_task, possible)
        for pair in ours:
            assert pair.chosen.token_ids in good
            assert pair.rejected.token_ids in bad


@given(
    st.lists(st.integers(0, 30), unique=True, max_size=20), st.lists(st.integers(0, 30), unique=True), st.integers(1, 8)
)
def test_batches_of_a_round_begin_with_what_comes_again(new, again, size):
    again = again[:size]
    found = list(batches(new, again, size))
    played = [row for batch in found for row in batch]
    assert played == [*again, *(row for row in new if row not in again)]
    assert all(len(batch) == size for batch in found[:-1]) and len(found[-1]) <= size


def test_the_first_batch_is_the_schedules_and_keeps_what_it_repeats():
    assert next(batches([3, 3, 1, 2], [], 3)) == [3, 3, 1]


def test_tasks_that_differ():
    rows = [{"task": task, "success": success} for task, success in zip("aabbcc", [1, 0, 1, 1, 0, 1])]
    assert differing(rows) == ["a", "c"]
