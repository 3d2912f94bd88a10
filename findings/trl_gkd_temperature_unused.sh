#!/usr/bin/env bash
# trl 1.16.0 (transformers 5.17.0, torch 2.13.0): GKDTrainer's temperature does not reach its divergence.
#
# One expects GKDConfig.temperature to soften both distributions in the distillation loss, as in every text on
# distillation and as the trainer's own generalized_jsd_loss(temperature=...) does when it is called by hand.
# What happens: with lmbda=0 (data as given, nothing is sampled) the first step's loss and gradient norm are the same
# for any temperature; the setting only reaches the generation of the student's own samples.
# Seen: temperature 0.5 and 5.0 give the same loss and the same gradient norm, to the last digit that is logged, while
# generalized_jsd_loss called with them gives losses that differ by more than half.
# Why it hurts: a sweep over temperatures of off-policy distillation compares runs that are the same run.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0 accelerate==1.15.0 trl==1.16.0 numpy==2.3.5
cat > "$t/gkd.py" <<'PY'
import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.gkd import GKDConfig, GKDTrainer


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
seen, by_hand = [], []
for temperature in (0.5, 5.0):
    arguments = GKDConfig(sys.argv[1], lmbda=0.0, beta=0.0, temperature=temperature, max_steps=1, use_cpu=True, bf16=False,
                          per_device_train_batch_size=2, report_to=[], logging_steps=1, save_strategy="no",
                          disable_tqdm=True, max_length=None, gradient_checkpointing=False,
                          dataset_kwargs={"skip_prepare_dataset": True})
    student, teacher = model(0), model(1)
    with torch.no_grad():
        ids = collate(list(rows))["input_ids"]
        pair = student(ids).logits[:, :-1], teacher(ids).logits[:, :-1]
    by_hand.append(float(GKDTrainer.generalized_jsd_loss(*pair, labels=ids[:, 1:], beta=0.0, temperature=temperature)))
    trainer = GKDTrainer(model=student, teacher_model=teacher, args=arguments, data_collator=collate, train_dataset=rows,
                         processing_class=tokenizer)
    trainer.train()
    row = trainer.state.log_history[0]
    seen.append((row["loss"], row["grad_norm"]))
    print(f"temperature {temperature}: loss {row['loss']}, gradient norm {row['grad_norm']}; by hand {by_hand[-1]:.4f}")
assert seen[0] == seen[1]
assert min(by_hand) < 0.5 * max(by_hand)
PY
CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 "$t/venv/bin/python" "$t/gkd.py" "$t/out" 2> "$t/log" || { tail -n 5 "$t/log"; exit 1; }
