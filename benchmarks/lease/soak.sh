# The soak (benchmarks/soak.py) on a lent machine's cores; no GPU is used. Carry .gpu-kit (wheels for Python 3.12, see README.md).
#   bash benchmarks/lease/soak.sh begin WHAT ARGUMENTS...   unpacks once, starts `soak.py WHAT ARGUMENTS` in the background
#   bash benchmarks/lease/soak.sh wait SECONDS              waits for it, prints the table, leaves figures and failures in $OUT
export PYTHONPATH=$HOME/repo:$HOME/site HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES=
if [ ! -f ~/.unpacked ]; then
  tar xJf .gpu-kit/kit.tar.xz -C ~ && mkdir -p ~/repo && cp -r [!.]* ~/repo/
  lscpu | grep -E 'Model name|^CPU\(s\)'; touch ~/.unpacked
fi
command=$1; shift; cd ~/repo
if [ "$command" = begin ]; then
  what=$1; shift
  nohup setsid python3 -m benchmarks.soak $what --folder ~/soak "$@" > ~/soak-$what.log 2>&1 &
  echo $! >> ~/soak.pids; sleep 15; tail -3 ~/soak-$what.log
else
  end=$((SECONDS + $1))
  while [ $SECONDS -lt $end ] && kill -0 $(cat ~/soak.pids) 2>/dev/null; do sleep 3; done
  tail -n 3 ~/soak-*.log; ls -d ~/soak/*/*/run/*/model | awk -F/ '{print $(NF-4), $(NF-1)}' | sort | uniq -c
  python3 -m benchmarks.soak table --folder ~/soak --json $OUT/soak.json
  tar cJf $OUT/reports.tar.xz $(find ~/soak -name report.json -o -name outcome.json) 2>/dev/null
fi
