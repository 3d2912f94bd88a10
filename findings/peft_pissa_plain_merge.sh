#!/usr/bin/env bash
# peft 0.21.2 (torch 2.13.0): a PiSSA or OLoRA adapter does not add to the base model it names.
#
# One expects the file format of LoRA to mean one thing: lora_A and lora_B were trained on the base named in
# adapter_config.json, so the tuned weight is W + scaling * B @ A, whatever init_lora_weights said: an initial value
# is over once training starts.
# What happens: with "pissa" or "olora" peft subtracts the initial product from the base weight when the adapter is
# made, saves only A and B, and each time the file is loaded repeats the factorization and rewrites the base again.
# The only sign in the file is the config's "init_lora_weights"; the tensors have the usual names and shapes.
# Seen (distance of W + scaling * B @ A from peft's own merge, as a share of it):
#   default 0.00   gaussian 0.00   pissa 0.57   olora 0.43
# Why it hurts: whoever merges or serves adapters from A and B alone (merge scripts, inference engines, task
# arithmetic over adapters) gets a ruined model of the right shape, without an error. Such an adapter has to be saved
# with path_initial_model_for_weight_conversion, or its base saved beside it.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 peft==0.21.2 transformers==5.17.0 numpy==2.3.5 safetensors==0.8.0
"$t/venv/bin/python" - "$t" <<'PY'
import copy
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

for init in (True, "gaussian", "pissa", "olora"):
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False))
    original = base[0].weight.detach().clone()
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=init)  # scaling = 4 / 4 = 1
    tuned = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        tuned.base_model.model[0].lora_A["default"].weight.add_(0.1)  # stands for training
    folder = f"{sys.argv[1]}/{init}"
    tuned.save_pretrained(folder)
    saved = load_file(f"{folder}/adapter_model.safetensors")
    assert sorted(saved) == ["base_model.model.0.lora_A.weight", "base_model.model.0.lora_B.weight"], sorted(saved)
    a, b = (saved[f"base_model.model.0.lora_{x}.weight"] for x in "AB")
    merged = PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload()[0].weight
    away = float((original + b @ a - merged.detach()).norm() / merged.detach().norm())
    print(f"init_lora_weights={init}: W + BA is {away:.2f} of its norm away from peft's merge")
    assert away > 0.2 if init in ("pissa", "olora") else away < 1e-4, (init, away)
PY
