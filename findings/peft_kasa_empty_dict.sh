#!/usr/bin/env bash
# peft 0.21.2 (torch 2.13.0): LoraConfig(kasa_config={}) switches KaSA on.
#
# One expects an empty dict to ask for nothing: it is falsy, and in the same class rank_pattern={}, alpha_pattern={}
# and loftq_config={} (their defaults) all mean "off".
# What happens: {} becomes KasaConfig() with its defaults, which is not None, so every layer is made a KaSA layer: its
# base weight loses its smallest singular values, and the saved adapter has one more tensor per layer.
# Seen: LoraConfig().kasa_config is None, LoraConfig(kasa_config={}).kasa_config is KasaConfig(beta=0.0001,
# gamma=0.001); the untrained model differs from its base with {} and equals it without; the adapter has a lora_diag
# tensor.
# Why it hurts: a training recipe that keeps unused method options as empty mappings (YAML `kasa_config: {}`) trains
# another method on an altered base, and a loader that takes "falsy" for "unused" accepts the adapter as plain LoRA.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 peft==0.21.2 transformers==5.17.0 numpy==2.3.5
"$t/venv/bin/python" - <<'PY'
import copy

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False))
x = torch.randn(8, 32)
off = {"rank_pattern": {}, "alpha_pattern": {}, "loftq_config": {}}
for options in ({}, off, {"kasa_config": {}}):
    config = LoraConfig(r=4, target_modules=["0"], **options)
    model = get_peft_model(copy.deepcopy(base), config)
    names = sorted(get_peft_model_state_dict(model))
    with torch.no_grad():
        away = float((model(x) - base(x)).norm() / base(x).norm())
    print(options, "->", config.kasa_config, f"untrained model is {away:.3f} away from its base;", names)
    if "kasa_config" in options:
        assert config.kasa_config is not None and away > 1e-3 and len(names) == 3
    else:
        assert config.kasa_config is None and away < 1e-6 and len(names) == 2
PY
