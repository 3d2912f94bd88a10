# Serving with random weights, and evaluation beside lm-eval, on one lent H100: bash benchmarks/lease/serving.sh PART [more arguments]
# Kit as in rl_cluster.sh (rl_cluster_kit.sh); no weights travel. Parts write $OUT/PART.json as they go, and a table last; LIMIT (seconds) ends one.
. benchmarks/lease/rl_cluster_setup.sh
part=$1; shift
B=$HOME/bench; mkdir -p $B $OUT
export VLLM_LOGGING_LEVEL=INFO
run() { # NAME MODULE ARGUMENTS...
  name=$1; shift
  timeout -k 20 ${LIMIT:-580} python3 -m "$@" --folder $B/$name --json $OUT/$name.json > $B/$name.txt 2>&1; code=$?
  echo "== $name: exit $code after $SECONDS s"; grep -v Warning $B/$name.txt | tail -n ${LINES_SHOWN:-40} | cut -c1-600
  (cd $B && tar czf $OUT/$name-logs.tar.gz $name.txt $(find $name -name '*.txt' -o -name '*.json' 2> /dev/null))
  return $code
}
served() { need small vllm big1 big2 big3 big4; }
case $part in
  kit) ls $K; ! ls $K/*.failed 2> /dev/null ;;
  smoke) served; run smoke benchmarks.serving long --models nano9b --limit 400 "$@" ;; # the 9B starts at all, and is the figure serving.nano9b_128k_gib
  capped) served; run capped benchmarks.serving capped --seconds 120 --limit 285 "$@" ;;
  uncapped) served; run uncapped benchmarks.serving uncapped --seconds 60 --limit 285 "$@" ;;
  fit) served; run fit benchmarks.serving fit --limit 190 "$@" ;;
  bench) served; run bench benchmarks.serving bench --limit 290 "$@" ;;
  wall) needs_all; need lmeval # lmeval.tar.xz of serving_kit.sh
    run wall benchmarks.eval_wall --data-root $HOME/data --peer $SITE "$@" ;;
  *) echo "no part $part"; exit 2 ;;
esac
