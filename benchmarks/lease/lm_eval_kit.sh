# Packs lm-evaluation-harness for the lent machine (Python 3.12) into KIT/lmeval.tar.xz; rl_cluster_kit.sh then takes it along: bash THIS
set -euo pipefail
K=${KIT:-/tmp/rl_cluster_kit}; W=$(mktemp -d); trap 'rm -rf "$W"' EXIT; mkdir -p $K $W/site
env -u PIP_FIND_LINKS python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d $W/wheels \
  lm_eval==0.4.13 evaluate==0.4.6 jsonlines==4.0.0 more_itertools==11.2.1 pytablewriter==1.2.1 dataproperty==1.1.1 mbstrdecoder==1.1.5 \
  pathvalidate==3.3.1 tabledata==1.3.5 tcolorpy==0.1.7 typepy==2.0.0 chardet==7.7.0 absl_py==2.5.1 nltk==3.10.4 sacrebleu==2.6.0 \
  colorama==0.4.6 portalocker==4.4.2 tabulate==0.10.0 zstandard==0.25.0 lxml==6.1.3 six==1.17.0 immutabledict==4.3.1
env -u PIP_FIND_LINKS python3 -m pip wheel -q --no-deps -w $W/wheels rouge_score==0.1.2 sqlitedict==2.1.0 word2number==1.1 langdetect==1.0.9 # sources, plain Python
for wheel in $W/wheels/*.whl; do unzip -q -o $wheel -d $W/site; done
find $W/site/lm_eval/tasks -mindepth 1 -maxdepth 1 -type d ! -name ifeval -exec rm -r {} + # thousands of files that are never read
tar c -C $W/site . | xz -T2 -6 > $K/lmeval.tar.xz; ls -la $K/lmeval.tar.xz
