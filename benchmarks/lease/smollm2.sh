# recipes/smollm2-135m.yaml on one GPU, the branches after refine side by side; resumes where it stopped.
# Every argument is handed on, so that shorter runs are possible: --set stages.instruct.train.steps=40 ...
. benchmarks/lease/setup.sh
R=${RUNS:-$HOME/runs} RUN=smollm2-135m; mkdir -p $R/a
stage() { root=$1 until=$2; shift 2; python -c 'from nanoalign.cli import main; main()' run recipes/$RUN.yaml --root $R/$root --device cuda --until $until "$@"; }
stage a refine "$@" || exit
for branch in b c; do mkdir -p $R/$branch/$RUN; cp -r $R/a/$RUN/. $R/$branch/$RUN/; done # folders that are there already: finished stages
(stage b instruct "$@") & (sleep 10; stage c judge "$@") & (sleep 20; stage a workplace "$@") & wait
for each in b/$RUN/instruct c/$RUN/judge; do cp -r $R/$each $R/a/$RUN/; done
stage a verdict "$@"
