#!/usr/bin/env bash
# trl 1.16.0 (transformers 5.17.0, torch 2.13.0, accelerate 1.15.0): GKDTrainer on two processes halves loss and gradient.
#
# One expects the same global batch on one process and on two to log one loss and one gradient norm, as SFTTrainer's.
# What happens: GKD's loss is a sum over tokens divided by the number of tokens in the batch of all processes, which is
# averaged over processes afterwards; SFTTrainer undoes that average, GKDTrainer does not.
# Seen: two rows, one process: some loss and gradient norm; one row each on two gloo processes: half of both, within a
# thousandth. SFTTrainer on the same rows: the same loss and gradient norm on one process and on two.
# Why it hurts: on eight GPUs gradients are an eighth: clipping at max_grad_norm 1.0 starts eight times later, weight
# decay weighs more beside them where the optimizer is no Adam, and losses of runs on different numbers of GPUs do not
# compare.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0 accelerate==1.15.0 trl==1.16.0 numpy==2.3.5
cat > "$t/gkd.py" <<'PY'
import json
import os
import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

folder, kind = sys.argv[1], sys.argv[2]
world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


def model(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5))


def collate(items):
    ids = torch.tensor([item["input_ids"] for item in items])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


words = {str(number): number for number in range(64)}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="1", eos_token="2")
rows = Dataset.from_dict({"input_ids": [[(7 * i + j * 13) % 60 + 3 for j in range(16)] for i in range(2)]})
shared = {"max_steps": 1, "use_cpu": True, "bf16": False, "per_device_train_batch_size": 2 // world, "report_to": [],
          "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "max_length": None,
          "gradient_checkpointing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
more = {"data_collator": collate, "train_dataset": rows, "processing_class": tokenizer}
if kind == "gkd":
    trainer = GKDTrainer(model=model(0), teacher_model=model(1), args=GKDConfig(folder, lmbda=0.0, beta=0.0, **shared), **more)
else:
    trainer = SFTTrainer(model=model(0), args=SFTConfig(folder, **shared), **more)
trainer.train()
if rank == 0:
    row = trainer.state.log_history[0]
    print("FOUND " + json.dumps([row["loss"], row["grad_norm"]]))
PY
cat > "$t/check.py" <<'PY'
import json
import sys

found = {name: json.loads(text) for name, text in (line.split(" FOUND ") for line in sys.stdin)}
for name, (loss, norm) in found.items():
    print(f"{name}: loss {loss:.4f}, gradient norm {norm:.4f}")
near = lambda a, b: abs(a / b - 1) < 1e-3
assert all(near(2 * two, one) for two, one in zip(found["gkd2"], found["gkd1"]))
assert all(near(two, one) for two, one in zip(found["sft2"], found["sft1"]))
PY
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
for kind in gkd sft; do
  "$t/venv/bin/python" "$t/gkd.py" "$t/out" $kind 2>> "$t/log" | grep FOUND | sed "s/^/${kind}1 /" >> "$t/found" || { tail -n 5 "$t/log"; exit 1; }
  "$t/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 "$t/gkd.py" "$t/out" $kind 2>> "$t/log" | grep FOUND | sed "s/^/${kind}2 /" >> "$t/found" || { tail -n 5 "$t/log"; exit 1; }
done
"$t/venv/bin/python" "$t/check.py" < "$t/found"
