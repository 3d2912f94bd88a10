#!/usr/bin/env bash
# transformers 5.17.0 (torch 2.13.0, accelerate 1.15.0): a Trainer on several CPU processes saves checkpoints that it
# cannot resume from.
#
# One expects resume_from_checkpoint to work wherever training and saving did.
# What happens: with several processes the optimizer's state is loaded onto args.device, which on CPU (gloo) is "cpu:0",
# a device that tensors accept but torch.load has no rule for.
# Seen: one process resumes; two processes train and save, and on resume each ends with RuntimeError "don't know how to
# restore data location of torch.storage.UntypedStorage (tagged with cpu:0)".
# Why it hurts: this is how tests of resumption run without GPUs; the same code resumes on GPUs.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0 accelerate==1.15.0 numpy==2.3.5
cat > "$t/train.py" <<'PY'
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=2))
rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 16
arguments = TrainingArguments(str(folder), use_cpu=True, max_steps=steps, save_steps=1, per_device_train_batch_size=2,
                              report_to=[], disable_tqdm=True)
trainer = Trainer(model, arguments, train_dataset=rows)
said = f"{arguments.device} "
try:
    trainer.train(resume_from_checkpoint=steps > 2)
    said += "trained"
except RuntimeError as error:
    said += str(error)
(folder / f"said-{steps}-{arguments.process_index}").write_text(said)
PY
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
for processes in 1 2; do
  for steps in 2 4; do
    "$t/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node=$processes "$t/train.py" "$t/$processes" $steps > "$t/log" 2>&1
    echo "$processes process(es), $steps steps: $(cut -c1-130 "$t/$processes/said-$steps-0")"
  done
done
grep -q "trained" "$t/1/said-2-0" && grep -q "trained" "$t/1/said-4-0" && grep -q "^cpu:0 trained" "$t/2/said-2-0"
grep -q "don't know how to restore data location .*tagged with cpu:0" "$t/2/said-4-0"
