#!/usr/bin/env bash
# transformers 5.17.0 (torch 2.13.0): two keys of NemotronH's config change nothing of the model.
#
# One expects a NemotronH with tie_word_embeddings=True to share one matrix between embedding and head, as Llama's does,
# and one with attention_bias=True to have biases in its attention, as the config's other *_bias keys give theirs.
# What happens: the model keeps a head of its own and has no attention biases; nothing is said. mlp_bias works.
# Seen: named_parameters has lm_head.weight with the key and without, as many weights either way; no name ends in
# q_proj.bias with attention_bias=True; up_proj.bias is there with mlp_bias=True. Llama's two keys work.
# Why it hurts: a count of parameters or of memory from config.json is wrong by the size of an embedding (0.7 billion
# weights for 131,072 tokens of 5,120 channels); tools that write a tied checkpoint by the config leave the head out,
# and it is then drawn at random.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0 numpy==2.3.5
cat > "$t/keys.py" <<'PY'
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, NemotronHConfig

shared = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def names(config):
    with torch.device("meta"):
        return [name for name, _ in AutoModelForCausalLM.from_config(config).named_parameters()]


def hybrid(**more):
    return names(NemotronHConfig(hybrid_override_pattern="M-*", head_dim=8, mamba_num_heads=4, mamba_head_dim=8,
                                 n_groups=2, ssm_state_size=8, **shared, **more))


def llama(**more):
    return names(LlamaConfig(num_hidden_layers=1, **shared, **{"tie_word_embeddings": False} | more))


def has(found, end):
    return any(name.endswith(end) for name in found)


tied, biased = hybrid(tie_word_embeddings=True), hybrid(attention_bias=True)
print("NemotronH: a head of its own with tie_word_embeddings:", has(tied, "lm_head.weight"))
print("NemotronH: biases with attention_bias:", has(biased, "q_proj.bias"), "; with mlp_bias:", has(hybrid(mlp_bias=True), "up_proj.bias"))
print("Llama: a head of its own with tie_word_embeddings:", has(llama(tie_word_embeddings=True), "lm_head.weight"),
      "; biases with attention_bias:", has(llama(attention_bias=True), "q_proj.bias"))
assert has(tied, "lm_head.weight") and tied == hybrid(tie_word_embeddings=False)
assert not has(biased, "q_proj.bias") and has(hybrid(mlp_bias=True), "up_proj.bias")
assert not has(llama(tie_word_embeddings=True), "lm_head.weight") and has(llama(attention_bias=True), "q_proj.bias")
PY
CUDA_VISIBLE_DEVICES= "$t/venv/bin/python" "$t/keys.py" 2> "$t/log" || { tail -n 5 "$t/log"; exit 1; }
