# On four lent GPUs, with trl and datasets in .gpu-kit/kit.tar.xz (Python 3.12): GRPO's training, packed and on many GPUs.
set -u
mkdir -p ~/site && tar xJf .gpu-kit/kit.tar.xz -C ~/site
for room in common models data_recipes sft budget_control reward rl rollouts evaluation compress merge recipes; do
  [ -e nanoalign/$room ] || ln -s ../$room nanoalign/$room
done
export PYTHONPATH=$PWD:$HOME/site HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
nvidia-smi -L
python3 -c "import trl, datasets, nanoalign.rl.grpo_trainer; print('imports', trl.__version__)" || exit 1
CUDA_VISIBLE_DEVICES=0 timeout 300 python3 -m benchmarks.rl_many_gpus packed --model hybrid > $OUT/packed_hybrid.json 2> $OUT/packed_hybrid.log &
CUDA_VISIBLE_DEVICES=1 timeout 300 python3 -m benchmarks.rl_many_gpus packed --model llama --batch 128 --micro 8 16 32 --pack-tokens 32768 > $OUT/packed_llama.json 2> $OUT/packed_llama.log &
wait
timeout 240 python3 -m benchmarks.rl_many_gpus scaling --model hybrid --batch 128 --gpus 4 > $OUT/scaling_hybrid.json 2> $OUT/scaling_hybrid.log
timeout 200 python3 -m benchmarks.rl_many_gpus scaling --model llama --batch 256 --pack-tokens 32768 --gpus 4 > $OUT/scaling_llama.json 2> $OUT/scaling_llama.log
for log in $OUT/*.log; do echo "== $log"; tail -n 12 $log | cut -c1-400; done
cat $OUT/*.json
