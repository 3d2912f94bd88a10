#!/usr/bin/env bash
# trl 1.16.0 (datasets 5.2.0): DPOTrainer with precompute_ref_log_probs=True and a data set made in memory dies on every
# process but the first.
#
# One expects the option, which is TRL's own way to do without a reference model, to work under torchrun for any
# Dataset, as the trainer itself does.
# What happens: the first process writes the reference's log-probabilities into the data set's cache folder, and all
# processes read them there. A Dataset from memory (from_dict, from_list, from_generator's in-memory kin) has no file,
# so datasets gives each process a temporary folder of its own (/tmp/hf_datasets-XXXX): the others look into theirs.
# Seen: on one process train() runs; on two, rank 0 goes on and rank 1 ends with FileNotFoundError for a cache file under
# /tmp/hf_datasets-...; the same rows after save_to_disk and load_from_disk train on two.
# Why it hurts: preference pairs that were sampled on the way (on-policy DPO) live in memory; the failure comes after the
# reference's whole pass, and rank 0 then waits in a collective until NCCL's time-out.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 trl==1.16.0 datasets==5.2.0 transformers==5.17.0 accelerate==1.15.0 numpy==2.3.5
cat > "$t/train.py" <<'PY'
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, load_from_disk
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

folder, way = Path(sys.argv[1]), sys.argv[2]
backend = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "say": 2, "yes": 3, "no": 4}, unk_token="<pad>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, eos_token_id=1))
rows = Dataset.from_dict({"prompt": ["say"] * 8, "chosen": [" yes"] * 8, "rejected": [" no"] * 8})
state = PartialState(cpu=True)
if way == "disk":
    if state.is_main_process:
        rows.save_to_disk(folder / "rows")
    state.wait_for_everyone()
    rows = load_from_disk(folder / "rows")
arguments = DPOConfig(str(folder / "out"), use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=2,
                      precompute_ref_log_probs=True, report_to=[], save_strategy="no")
try:
    DPOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer).train()
    said = "trained"
except FileNotFoundError as error:
    said = f"FileNotFoundError {'hf_datasets' in str(error)}"
(folder / f"{way}-{state.num_processes}-{state.process_index}").write_text(said)
if said != "trained":
    sys.exit(1)
PY
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false
run() { "$t/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node="$1" "$t/train.py" "$t" "$2" > "$t/log" 2>&1; }
run 1 memory
run 2 disk
if run 2 memory; then echo "two processes trained on a data set from memory: the behaviour has changed"; exit 1; fi
for file in memory-1-0 disk-2-0 disk-2-1 memory-2-1; do echo "$file: $(cat "$t/$file")"; done
[ "$(cat "$t/memory-1-0")" = trained ] && [ "$(cat "$t/disk-2-0")$(cat "$t/disk-2-1")" = trainedtrained ]
[ "$(cat "$t/memory-2-1")" = "FileNotFoundError True" ]
