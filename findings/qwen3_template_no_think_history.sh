#!/usr/bin/env bash
# trl 1.16.0 (transformers 5.17.0): Qwen3's own chat template with enable_thinking=False takes its empty think block back
# on the next turn.
#
# One expects a conversation without thinking to grow at its end only: there is no reasoning that the template could
# strip from history, so the prompt of turn 2 should begin with the prompt and the answer of turn 1.
# What happens: enable_thinking=False ends the generation prompt with an empty think block; the finished answer is
# rendered with the block as long as it is the last message, and without it once a user message follows.
# Seen: the prompt of turn 1 ends with '<think>\n\n</think>\n\n'; the conversation after the answer begins with it: True;
# the prompt of turn 2 begins with it: False. With TRL's training template of the same family: True and True.
# Why it hurts: a multi-turn rollout that keeps one token sequence per episode (or a server's prefix cache) and the text
# rendered anew from the messages differ from turn 2 on: log-probabilities are computed on tokens that the policy did
# not see, and turning thinking off, which looks like the way around the stripped reasoning, does not avoid it.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q trl==1.16.0 torch==2.13.0 datasets==5.2.0 transformers==5.17.0 accelerate==1.15.0 numpy==2.3.5
CUDA_VISIBLE_DEVICES='' "$t/venv/bin/python" - <<'PY'
from pathlib import Path

import trl
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

first = [{"role": "user", "content": "Name a city."}]
second = [{"role": "assistant", "content": "Oslo."}]
third = [{"role": "user", "content": "Another one."}]
for name in ("qwen3", "qwen3_training"):  # as the models ship it; TRL's change of it
    template = (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), chat_template=template
    )

    def render(messages, prompt=False):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
        )

    turn1, answered, turn2 = render(first, True), render(first + second), render(first + second + third, True)
    grows = answered.startswith(turn1), turn2.startswith(turn1)
    print(name, grows, repr(turn2))
    assert turn1.endswith("<think>\n\n</think>\n\n") and turn2.endswith("<think>\n\n</think>\n\n")
    assert grows == (True, name == "qwen3_training"), (name, grows)
PY
