#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.17.0, torch 2.13.0): modules_to_save=["embed_tokens"] unties a tied model.
#
# One expects a model with tie_word_embeddings=True to keep one matrix for input and output: training it as
# embed_tokens trains the head as well, and merge_and_unload gives a model of the same size with both ends trained.
# What happens: modules_to_save trains a copy that only the input side uses; the head stays the base matrix. The
# merged model is untied (config.tie_word_embeddings became False), has a second vocabulary-sized matrix, and its head
# is the base one. Warnings speak of complications when merging or converting and of the embeddings being "no longer
# tied", not of a head without training. ensure_weight_tying=True gives what one expected, but is off by default.
# Seen: ensure_weight_tying=False: tied False, head untrained True; ensure_weight_tying=True: tied True, head
# untrained False.
# Why it hurts: this is the usual way to teach new special tokens (chat markers, tool tags). The model learns to read
# them and not to write them, and the merged checkpoint grows; tools that still assume a tied model (a merge that
# keeps the base's config, an export that drops lm_head) then produce a third model.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 peft==0.21.2 transformers==5.17.0 numpy==2.3.5
"$t/venv/bin/python" - <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
for ensure in (False, True):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    base = model.lm_head.weight.detach().clone()
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=ensure,
    )
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if weight.requires_grad and "embed_tokens" in name:
                weight.add_(0.1)  # stands for training
    merged = tuned.merge_and_unload()
    head, inputs = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert not torch.equal(inputs, base)
    tied, untrained = merged.config.tie_word_embeddings, torch.equal(head, base)
    print(f"ensure_weight_tying={ensure}: tied {tied}, head untrained {untrained}")
    assert tied is ensure and torch.equal(head, inputs) is ensure and untrained is not ensure
PY
