"""Working written for reasoning-gym's tasks."""

from random import Random

import pytest

from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.generators import check_name, generate, in_test
from nanoalign.data_recipes.worked import FAMILIES, hastily
from nanoalign.reward.final_answer import stated_answer

reasoning_gym = pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_is_reasoning_gyms_and_the_working_ends_at_it(name: str) -> None:
    family = FAMILIES[name]
    dataset = reasoning_gym.create_dataset(family.dataset, size=1, seed=0, **family.settings)
    for each in generate(f"worked:{name}", 60, "train", 5):
        reply = each.messages[-1]
        answer = stated_answer(reply.content)
        assert answer == each.task["answer"]
        assert dataset.score_answer(answer, {"answer": each.task["answer"], "metadata": {}}) == 1
        last = (reply.reasoning or "").splitlines()[-1]
        if name in ("chain_sum", "products", "leg_counting", "letter_counting", "simple_equations"):
            assert last.replace(",", "").replace("=", " ").split()[-1] == answer
        if name == "spell_backward":
            assert last.replace(" ", "") == answer


@pytest.mark.parametrize("name", FAMILIES)
def test_every_equation_of_the_working_holds(name: str) -> None:
    for each in generate(f"worked:{name}", 60, "train", 6):
        for line in (each.messages[-1].reasoning or "").splitlines():
            for equation in line.partition(": ")[2].split(", ") if name == "leg_counting" else line.split(", "):
                sides = equation.split("=")
                if name in ("chain_sum", "products", "gcd", "leg_counting"):
                    assert len({eval(side) for side in sides}) == 1, equation  # digits and signs, made here


def test_the_splits_share_no_task_and_a_seed_gives_the_same() -> None:
    train, test = (generate("worked:chain_sum", 80, split, 3) for split in ("train", "test"))
    assert not {each.messages[0] for each in train} & {each.messages[0] for each in test}
    assert all(in_test(each, 0.1) for each in test)
    assert generate("worked:chain_sum", 80, "train", 3) == train


def test_a_hasty_teacher_leaves_no_step_out() -> None:
    solved = generate("worked:chain_sum", 20, "train", 3)
    by_question = {each.messages[0].content: each for each in solved}
    for each in hastily(solved, Random(1)):
        whole, said = by_question[each.messages[0].content].messages[-1], each.messages[-1]
        thought = (said.reasoning or "").removeprefix("Let me see.")
        assert [*thought.splitlines(), *said.content.splitlines()] == [
            *(whole.reasoning or "").splitlines(),
            *whole.content.splitlines(),
        ]
    mixed = generate("worked:hasty", 2 * len(FAMILIES), "train", 3)
    assert isinstance(mixed[0], Conversation) and len({each.domain for each in mixed}) == len(FAMILIES)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="chain_sum"):
        check_name("worked:chain_sums")
