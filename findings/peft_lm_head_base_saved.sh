#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.17.0, torch 2.13.0): a LoRA on lm_head carries the whole base head, and loading puts it
# back.
#
# One expects an adapter with target_modules=["q_proj", "lm_head"] to hold pairs of A and B only, as it does for every
# other layer, and loading it to leave the base weights alone.
# What happens: save_pretrained's default save_embedding_layers="auto" also writes lm_head.base_layer.weight
# (untrained, the full vocabulary; a warning says that embedding layers are saved, and none says the rest), and
# from_pretrained copies it over the head of whatever base it is loaded on.
# Seen: saved: lm_head.base_layer.weight of 16000 numbers among 18160 (88%); a second base's head replaced by the
# first's: True; with save_embedding_layers=False neither happens.
# Why it hurts: the file of a "small" adapter is dominated by a copy of the base (over a gigabyte for a large
# vocabulary), readers that expect only A and B stop at the extra name, and an adapter put on a further trained base
# silently undoes that base's head, though only the difference BA was asked for.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 peft==0.21.2 transformers==5.17.0 numpy==2.3.5 safetensors==0.8.0
"$t/venv/bin/python" - "$t" <<'PY'
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM


def base(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=1000, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )


config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"])
tuned = get_peft_model(base(0), config)
assert not any(w.requires_grad for n, w in tuned.named_parameters() if "base_layer" in n)
for layers in ("auto", False):
    folder = f"{sys.argv[1]}/{layers}"
    tuned.save_pretrained(folder, save_embedding_layers=layers)
    saved = load_file(f"{folder}/adapter_model.safetensors")
    extra = {n: w.numel() for n, w in saved.items() if "lora_" not in n}
    other = base(1)
    before = other.lm_head.weight.detach().clone()
    loaded = PeftModel.from_pretrained(other, folder)
    replaced = not torch.equal(loaded.base_model.model.lm_head.base_layer.weight, before)
    total = sum(w.numel() for w in saved.values())
    print(f"save_embedding_layers={layers}: {extra} of {total}; head replaced: {replaced}")
    if layers == "auto":
        assert extra == {"base_model.model.lm_head.base_layer.weight": 16000} and replaced
    else:
        assert not extra and not replaced
PY
