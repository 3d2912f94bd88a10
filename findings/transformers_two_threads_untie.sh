#!/usr/bin/env bash
# transformers 5.17.0: after two threads have loaded models at the same time, no model of the process is tied any more.
#
# One expects from_pretrained to be safe in threads of their own models, or to fail where it is not; thread pools that load
# several checkpoints (or a policy here and a judge there) are common.
# What happens: while it loads, it replaces PreTrainedModel.tie_weights by a function that does nothing, and puts back what
# it found. Two loads that overlap put back each other's: the one that ends last may leave the function that does nothing.
# Seen: after some overlapping loads (between 1 and a few dozen) PreTrainedModel.tie_weights does nothing for the rest of
# the process; both loads have succeeded, without a warning. A model with tie_word_embeddings=True that is made afterwards
# has a head of its own, drawn at random, beside its embedding: it trains a weight that the config says does not exist,
# and its checkpoint holds two.
# Why it hurts: a trainer that starts its reward model or rollout engine beside its policy trains and saves another
# architecture than it says, in every later stage of the process.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0 numpy==2.3.5
cat > "$t/threads.py" <<'PY'
import sys
import threading

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

folder = sys.argv[1]
settings = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=8, num_attention_heads=2,
                       num_key_value_heads=2, tie_word_embeddings=True)


def tied():
    model = LlamaForCausalLM(settings)
    return model.lm_head.weight is model.model.embed_tokens.weight


own = PreTrainedModel.tie_weights
before = tied()
LlamaForCausalLM(settings).save_pretrained(folder)
for attempt in range(1, 201):
    start, faults = threading.Barrier(2), []

    def load():
        start.wait()
        try:
            LlamaForCausalLM.from_pretrained(folder)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if PreTrainedModel.tie_weights is not own:
        break
print(f"tied before: {before}; after {attempt} pairs of loads, {len(faults)} errors in the last: tied {tied()}")
assert before and not tied() and not faults
PY
"$t/venv/bin/python" "$t/threads.py" "$t/model" 2> "$t/log" || { tail -n 5 "$t/log"; exit 1; }
