"""Keys of other suites lead to ours: every target exists, and the hint is seen from where the mistake was made."""

from pathlib import Path

import pytest

from nanoalign.recipe.foreign import KINDS, STAGE, TOP, exists, hint
from nanoalign.recipe.load import RecipeError, load
from nanoalign.recipe.schema import Recipe


@pytest.mark.parametrize("path", STAGE)
def test_every_target_is_a_key_of_a_stage(path: str) -> None:
    assert any(exists(path, kind) for kind in KINDS)


@pytest.mark.parametrize("path", TOP)
def test_every_target_is_a_key_at_the_top(path: str) -> None:
    assert exists(path, Recipe)


def test_a_foreign_word_is_no_key_of_ours_in_the_same_place() -> None:
    """Else it would never be looked up there."""
    for path, words in STAGE.items():
        for word in words.split():
            for kind in KINDS:
                assert not (exists(path, kind) and exists(word, kind)), f"{word} is a key of {kind.__name__} itself"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("stages.instruct.num_generations=8", "`group_size`"),
        ("stages.workplace.num_generations=8", "`samples_per_task`"),
        ("stages.instruct.max_completion_length=256", "`rollouts.max_tokens`"),
        ("stages.instruct.rollouts.max_completion_length=256", "`max_tokens`"),
        ("stages.instruct.lr=1e-5", "`train.learning_rate`"),
        ("stages.instruct.train.lr=1e-5", "`learning_rate`"),
        ("stages.instruct.reward_funcs=[math]", "`reward`"),
        ("stages.instruct.beta=0.04", "`kl`"),
        ("stages.instruct.train.num_generations=8", "`stages.NAME.group_size`"),
        ("stages.foundation.sample_packing=true", "`pack`"),
        ("stages.foundation.train.lora_r=8", "`lora.rank`"),
        ("stages.foundation.train.lora={r: 8}", "`rank`"),
        ("stages.foundation.deepspeed=zero3.json", "`launch.zero`, at the top of the recipe"),
        ("stages.foundation.dataset=mine", "`data`"),
        ("base_model=me/mine", "`model`"),
        ("lr=1e-5", "`stages.NAME.train.learning_rate`"),
        ("learning-rate=1e-5", "known:"),  # no table knows it; the nearest by spelling is asked for, and there is none
        ("suites.chat.dataset=mine", "`data`"),
        ("stages.instruct.reward_gpus=1", "`reward_gpu`"),  # ours, misspelt
    ],
)
def test_the_hint_is_seen_from_where_it_was_written(override: str, meant: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("miniature", [override])
    assert f"did you mean {meant}" in str(caught.value) or meant in str(caught.value), str(caught.value)


def test_a_section_outside_of_recipes_gets_no_hint_into_one() -> None:
    from nanoalign.data_recipes.synthetic.config import LongContext

    assert hint("lr", LongContext) == ""


def test_a_copied_recipe_of_another_suite(tmp_path: Path) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text("base_model: me/mine\ndatasets: []\nnum_epochs: 3\nlr_scheduler: cosine\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(str(file))
    for meant in ("`model`", "`data`", "`stages.NAME.train.epochs`", "`stages.NAME.train.schedule`"):
        assert f"did you mean {meant}?" in str(caught.value)
