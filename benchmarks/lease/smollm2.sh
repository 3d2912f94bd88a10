# recipes/smollm2-135m.yaml whole, its branches after refine side by side, on GPU 0 or on those of GPUS="0 1 2"; resumes where it stopped.
# Every argument is handed on, so that shorter runs are possible: --set stages.instruct.train.steps=40 ...
. benchmarks/lease/setup.sh
R=${RUNS:-$HOME/runs} RUN=smollm2-135m; mkdir -p $R/a; set -- ${GPUS:-0} -- "$@"
G0=$1 G1=$1 G2=$1; shift; [ $1 != -- ] && { G1=$1; shift; }; [ $1 != -- ] && { G2=$1; shift; }; shift
stage() { gpu=$1 root=$2 until=$3; shift 3; CUDA_VISIBLE_DEVICES=$gpu python -c 'from nanoalign.cli import main; main()' run recipes/$RUN.yaml --root $R/$root --device cuda --until $until "$@" > $R/$root-$until.log 2>&1; code=$?; echo "$(date +%T) $until: exit $code" >> $R/done.txt; return $code; }
stage $G0 a refine "$@" || exit
for branch in b c; do mkdir -p $R/$branch/$RUN; cp -r $R/a/$RUN/. $R/$branch/$RUN/; done
(stage $G0 b instruct "$@") & (sleep 10; stage $G1 c judge "$@") & (sleep 20; stage $G2 a workplace "$@") & wait
for each in b/$RUN/instruct c/$RUN/judge; do cp -r $R/$each $R/a/$RUN/; done
stage $G0 a verdict "$@"
