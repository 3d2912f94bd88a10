# benchmarks/sft_long_context.py whole, on one H100 in some 15 minutes, more than one call of 10: LIMIT, and run again with what is missing; run in the repository root after `. setup.sh`; JSON to $OUT
: ${OUT:=/tmp/out}; mkdir -p $OUT; J=$OUT/sft_long_context.json; B="python benchmarks/sft_long_context.py --json $J"
END=$((SECONDS + ${LIMIT:-530}))
go() { left=$((END - SECONDS)); t=$1; shift; [ $# = 2 ] && has "$2." && return; [ $left -lt 20 ] && { echo "no time for $*"; return; }; [ $t -gt $left ] && t=$left; echo "--- $* ($(date +%T))"; $B --timeout $t "$@" 2>&1 | grep -v "^[a-z0-9_]*\.[a-z_0-9]* *  " ; }
has() { grep -q "\"$1" $J 2>/dev/null; }
# the first step of a fresh machine: an empty Triton cache
export TRITON_CACHE_DIR=/tmp/triton-final
go 100 --only slice.triton.131072
has slice.triton.131072.mfu || go 60 --only slice.triton.131072 --set '{"keep":7}'
has slice.triton.131072.mfu || go 60 --only slice.triton.131072 --set '{"keep":5}'
# on an H200 more blocks fit; a fresh host pins 3.6 GB/s
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
[ $(nvidia-smi -i 0 --query-gpu=memory.total --format=csv,noheader,nounits) -gt 100000 ] && go 180 --only nano9b_lora.131072 --set '{"keep":26,"host_gb":117}'
has nano9b_lora.131072.mfu || go 150 --only nano9b_lora.131072
has nano9b_lora.131072.mfu || go 110 --only nano9b_lora.131072 --set '{"keep":7,"host_gb":66}'
unset PYTORCH_CUDA_ALLOC_CONF
go 180 --only slice.wheels.8192 # which searches for its configurations
go 60 --only isolation.float32
go 150 --only isolation.bfloat16
go 40 --only loss
for name in transformers.2048 transformers.4096 wheels.16384 triton.8192 triton.16384 triton.32768 triton.65536; do go 75 --only slice.$name; done
go 100 --only slice.triton.262144 --set '{"keep":2}'
go 40 --only kernels
for name in wheels.32768 torch.8192 torch.16384; do go 75 --only slice.$name; done
[ $((END - SECONDS)) -gt 40 ] && PROFILE=1 timeout 45 python benchmarks/sft_long_context.py --inside --only slice.triton.131072 --set '{"steps":1}' 2>&1 | grep profile
python - <<P
import json; d=json.load(open("$J")); print(json.dumps(d["setting"])); [print(f"{k:44} {v:.6g}") for k,v in d["figures"].items()]
P
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,power.draw --format=csv,noheader
