# GRPO on vLLM beside plain TRL, <= 8 minutes; $OUT/grpo_vllm.json is written as it goes, the table comes last.
# One H100: tasks one after the other (~475 s). Two or more visible GPUs: a task on each, longer runs. GPUS="0 1" chooses them; TASKS, OURS_S, TRL_S, LIMIT.
. benchmarks/lease/setup.sh
mkdir -p $OUT
GPUS=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader | tr '\n' ' ')}; set -- $GPUS
bench() { # GPU JSON FOLDER OURS_S TRL_S TASKS...
  g=$1; j=$2; f=$3; o=$4; t=$5; shift 5
  CUDA_VISIBLE_DEVICES=$g timeout -k 15 ${LIMIT:-470} python3 -m benchmarks.grpo_vllm --data-root $HOME/data --folder $f --json $j --seconds $o --trl-seconds $t --start 140 --tasks $* > $j.log 2>&1
}
if [ $# -ge 2 ] && [ -z "$TASKS" ]; then
  bench $1 $OUT/grpo_vllm.json $HOME/bench-i ${OURS_S:-160} ${TRL_S:-160} instructions &
  bench $2 $OUT/grpo_vllm_sums.json $HOME/bench-s ${OURS_S:-160} ${TRL_S:-160} sums &
  wait
else
  bench $1 $OUT/grpo_vllm.json $HOME/bench-i ${OURS_S:-105} ${TRL_S:-45} ${TASKS:-instructions sums}
fi
for d in $HOME/bench-i/*/ $HOME/bench-s/*/; do [ -d $d ] || continue; n=$(basename $d); cp $d/log.txt $OUT/grpo_vllm_$n.txt; cp $d/metrics.jsonl $OUT/grpo_vllm_$n.jsonl 2>/dev/null; done
python3 - <<'P'
import glob, json, os
for path in sorted(glob.glob(os.environ["OUT"] + "/grpo_vllm*.json")):
    d = json.load(open(path))
    for k, r in d["runs"].items(): print(k, {a: (round(b, 4) if isinstance(b, float) else b) for a, b in r.items() if a != "curve"})
    for k, v in d["figures"].items(): print(f"{k:40} {v}")
    for k in d:
        if k.endswith("at_equal_time"): print(k, d[k])
P
