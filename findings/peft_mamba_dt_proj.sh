#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.17.0, torch 2.13.0): a LoRA on a Mamba model's dt_proj is counted as trainable and never
# used.
#
# One expects a LoRA that peft accepts to take part in the forward pass. dt_proj is an nn.Linear, and peft refuses the
# Mamba modules that are known not to work (out_proj, conv1d) with an error, so an accepted name looks vetted.
# What happens: transformers' mixer reads dt_proj.weight directly and does not call the module, so peft's wrapper is
# passed by. in_proj and x_proj are called and learn. Merging does write the product into the weight.
# Seen (Mamba and FalconMamba alike): out_proj refused with ValueError; after loss.backward(): in_proj True, x_proj
# True, dt_proj False for "has a gradient"; with dt_proj's A and B set to random numbers the logits stay those of the
# base until merge_and_unload, which changes them.
# Why it hurts: target_modules lists for Mamba often name dt_proj: its share of the adapter is trained in name only,
# and where such weights are not zero (another initialization, a merge of adapters) the merged model is not the one
# evaluated.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 peft==0.21.2 transformers==5.17.0 numpy==2.3.5
"$t/venv/bin/python" - <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, FalconMambaConfig, MambaConfig
from transformers.utils import logging

logging.set_verbosity_error()
tokens = torch.arange(12)[None]
for kind in (MambaConfig, FalconMambaConfig):

    def base():
        torch.manual_seed(0)
        shape = kind(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
        return AutoModelForCausalLM.from_config(shape).float().eval()

    def adapted(*names):
        # random A and B (not B = 0), so that every layer that is used shows in the output
        config = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=400, target_modules=list(names), init_lora_weights=False
        )
        return get_peft_model(base(), config).eval()

    try:
        adapted("out_proj")
        raise AssertionError("out_proj was accepted")
    except ValueError:
        pass

    model = adapted("in_proj", "x_proj", "dt_proj")
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    learns = dict.fromkeys(("in_proj", "x_proj", "dt_proj"), False)
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.grad is not None and weight.grad.abs().sum() > 0:
            learns[name.split(".lora_")[0].split(".")[-1]] = True
    assert learns == {"in_proj": True, "x_proj": True, "dt_proj": False}, learns

    with torch.no_grad():
        only = adapted("dt_proj")
        plain = base()(tokens, use_cache=False).logits
        before = float((only(tokens, use_cache=False).logits - plain).abs().max())
        after = float((only.merge_and_unload()(tokens, use_cache=False).logits - plain).abs().max())
    print(f"{kind.__name__}: gradients {learns}; logits moved by dt_proj's LoRA {before:.1e}, once merged {after:.1e}")
    assert before < 1e-6 and after > 100 * max(before, 1e-7), (before, after)
PY
