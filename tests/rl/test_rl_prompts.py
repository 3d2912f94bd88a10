"""Prompts for RL are the mixture's samples: filtered, drawn and shuffled as for any other stage."""

import json
from types import SimpleNamespace

import pytest

from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.selection import build
from nanoalign.models.config import Training
from nanoalign.rl import grpo, questions
from nanoalign.rl.collect import StepRollouts
from nanoalign.rl.config import GRPOStage
from nanoalign.rollouts.config import Rollouts


class Seen(Exception):
    """What the stage made prompts of."""


def test_grpo_asks_what_the_mixture_holds(small_base, tmp_path, monkeypatch):
    texts = [
        *(f"say {n}" for n in range(12)), "say 3", "say " + "x" * 100, "say <SPECIAL_11>",
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    ]  # fmt: skip
    rows = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "gsm8k").mkdir()
    benchmark = {"question": texts[-1], "answer": "a\n#### 1"}
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(benchmark))
    mixture = Mixture(
        sources={f"file:{tmp_path / 'rows.jsonl'}": 12},
        on_bad_row="skip",
        max_characters=90,
        deduplicate="exact",
        decontaminate=["gsm8k"],
    )

    def seen(conversations, *_, **__):
        raise Seen([each.messages[0].content for each in conversations])

    monkeypatch.setattr(questions, "prompts_of", seen)
    settings = GRPOStage(
        **{"kind": "grpo", "from": "base", "data": "m", "reward": {"format": 1.0}, "group_size": 4},
        rollouts=Rollouts(max_tokens=4, grace=2, batch_size=16),
        train=Training(learning_rate=1e-3, batch_size=16, steps=1),
    )
    folder = tmp_path / "run"
    context = StageContext(
        "instruct", folder, {"from": small_base}, "nemotron-nano-v2", 5, tmp_path, "cpu", log=StageLog(folder)
    )
    with pytest.raises(Seen) as stop:
        grpo.run(settings, {"m": mixture}, context)
    asked = stop.value.args[0]
    assert sorted(asked) == sorted(texts[:12]) and asked != texts[:12]
    built = build(mixture, tmp_path, 5, chat=chat_format("nemotron-nano-v2"))
    assert asked == [each.messages[0].content for each in built.conversations]


@pytest.mark.parametrize("share", [2, 4, 6])
def test_samples_are_kept_where_a_process_has_a_part_of_a_group(share):
    kept = []
    answer = SimpleNamespace(reasoning="", content="", faults=())
    sample = SimpleNamespace(messages=[SimpleNamespace(content="q")], answer=answer, thinking_budget=None)
    collect = SimpleNamespace(
        stage=SimpleNamespace(group_size=4),
        steps=1,
        held_out=False,
        log=SimpleNamespace(sample=lambda **row: kept.append(row)),
    )
    total = [float(place) for place in range(share)]
    StepRollouts.keep_samples(
        collect, [SimpleNamespace(domain="")] * share, [sample] * share, {"a": total}, total, step=0, first=0
    )
    assert [row["reward"] for row in kept] == [0.0, min(share, 4) - 1.0]
