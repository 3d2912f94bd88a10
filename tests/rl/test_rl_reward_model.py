"""The reward model learns a preference, is saved and loaded, and judges answers as the user sees them."""

import json
import math

import pytest
import torch

from nanoalign.common.errors import CheckpointError, DataError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.conversation import Answer, Conversation, Message
from nanoalign.data_recipes.rows import to_row
from nanoalign.models.config import Training
from nanoalign.models.loading import load_tokenizer
from nanoalign.models.scorer import load_scorer, scores
from nanoalign.reward.base import Sample
from nanoalign.reward.preference import answer_ids, load_reward_model
from nanoalign.rl import reward_model
from nanoalign.rl.config import RewardModelStage


def preferences(count: int) -> list[Conversation]:
    """The answer that says thanks is preferred."""
    return [
        Conversation(
            (Message("user", f"say {place}"), Message("assistant", f"on {place} thanks")),
            task={"kind": "preference", "rejected": f"on {place} words"},
        )
        for place in range(count)
    ]


@pytest.fixture(scope="module")
def trained(small_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    context = StageContext(
        "preference", folder, {"from": small_base}, "nemotron-nano-v2", 0, None, "cpu", log=StageLog(folder)
    )
    train = Training(learning_rate=3e-3, batch_size=16, epochs=4, dtype="float32")
    config = RewardModelStage(**{"kind": "reward_model", "from": "base", "data": "m", "train": train})
    rows = folder / "preferences.jsonl"
    rows.write_text("".join(json.dumps(to_row(each)) + "\n" for each in preferences(120)))
    figures = reward_model.run(config, {"m": Mixture(sources={f"file:{rows}": 120})}, context)
    return folder / "model", figures


def test_learns_and_tells_on_held_out_pairs(trained):
    _, figures = trained
    assert figures["loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    assert figures["loss_last"] < 0.3
    assert figures["held_out_pairs"] + figures["train_pairs"] == 120
    assert figures["accuracy"]["n"] == figures["held_out_pairs"] > 4
    assert figures["accuracy"]["low"] > 0.6


def test_judges_answers_alone(trained):
    judge = load_reward_model(trained[0], "cpu")
    prompt = (Message("user", "say 500"),)
    polite, plain, thoughtful, sly = judge(
        [
            Sample(prompt, Answer("on 500 thanks")),
            Sample(prompt, Answer("on 500 words")),
            Sample(prompt, Answer("on 500 thanks", reasoning="words words words")),
            Sample(prompt, Answer("on 500 words", reasoning="on 500 thanks")),
        ]
    )
    assert polite > plain + 1
    assert thoughtful == pytest.approx(polite, abs=1e-5)
    assert sly == pytest.approx(plain, abs=1e-5)


def test_a_score_does_not_depend_on_the_batch(trained):
    tokenizer = load_tokenizer(trained[0])
    model = load_scorer(trained[0], tokenizer.pad_token_id, "cpu", fresh_head=False)
    chat = chat_format("nemotron-nano-v2")
    sequences = [
        answer_ids([Message("user", "say " * n)], Message("assistant", "on"), chat, tokenizer) for n in (1, 30, 7)
    ]
    together = scores(model, sequences, 8)
    alone = [scores(model, [sequence], 1)[0] for sequence in sequences]
    assert together == pytest.approx(alone, abs=1e-5)
    last_hidden = model.model(input_ids=torch.tensor([sequences[1]])).last_hidden_state[0, -1]
    assert together[1] == pytest.approx((last_hidden @ model.score.weight[0]).item(), abs=1e-5)


def test_prompts_are_on_one_side(small_base):
    chat, tokenizer = chat_format("nemotron-nano-v2"), load_tokenizer(small_base)
    once, twice = preferences(60), preferences(60) * 2
    train, held_out = reward_model.split_pairs(once, chat, tokenizer)
    train_2, held_out_2 = reward_model.split_pairs(twice, chat, tokenizer)
    assert (train_2, held_out_2) == (train * 2, held_out * 2)


def test_what_is_no_pair_and_no_reward_model_is_refused(small_base):
    chat, tokenizer = chat_format("nemotron-nano-v2"), load_tokenizer(small_base)
    lone = Conversation((Message("user", "hi"), Message("assistant", "ho")), origin="rows:7")
    with pytest.raises(DataError, match="rows:7"):
        reward_model.split_pairs([lone], chat, tokenizer)
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        load_reward_model(small_base, "cpu")
