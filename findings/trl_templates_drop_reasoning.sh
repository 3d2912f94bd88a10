#!/usr/bin/env bash
# trl 1.16.0 (transformers 5.17.0): the training templates of Llama 3, Qwen2.5, Gemma, Phi 3 and DeepSeek-R1-Distill
# drop the reasoning of a reasoning set.
#
# One expects get_training_chat_template, which SFTTrainer uses to mark what the assistant said, to give a template that
# renders the whole assistant message, or an error that says that reasoning_content has no place in it. For Qwen3 it
# does render it.
# What happens: these templates read content alone; the key reasoning_content is ignored without an error or a warning.
# That holds for the model family made for reasoning, DeepSeek-R1-Distill, too, though its generation prompt opens a
# <think> block. The same text written into content as <think>...</think> is kept by each of these training templates.
# Seen ("reasoning kept" for reasoning_content, and for <think> in content): qwen3 True True; llama3, qwen2_5, gemma,
# gemma3, phi3, deepseek_r1_distill False True.
# Why it hurts: reasoning_content beside content is the form in which servers return reasoning and in which sets of
# traces are kept. Fine-tuning a base of these families on one trains the bare answers: the loss goes down, and the
# model has learned not to think.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 trl==1.16.0 datasets==5.2.0 transformers==5.17.0 accelerate==1.15.0 numpy==2.3.5
CUDA_VISIBLE_DEVICES='' "$t/venv/bin/python" - <<'PY'
from pathlib import Path

import trl
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import get_training_chat_template

question = {"role": "user", "content": "2+2?"}
apart = [question, {"role": "assistant", "reasoning_content": "Two and two.", "content": "4"}]
within = [question, {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"}]
for family in ("qwen3", "llama3", "qwen2_5", "gemma", "gemma3", "phi3", "deepseek_r1_distill"):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), bos_token="<s>", eos_token="</s>"
    )
    # the template that the family's models come with; TRL keeps a copy of each to know them by
    tokenizer.chat_template = (Path(trl.__file__).parent / f"chat_templates/{family}.jinja").read_text()
    tokenizer.chat_template = get_training_chat_template(processing_class=tokenizer)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in (apart, within)]
    kept = ["Two and two." in text for text in texts]
    print(family, *kept, repr(texts[0]))
    assert all("4" in text.replace("2+2", "") for text in texts)
    assert kept == [family == "qwen3", True], (family, kept)
PY
