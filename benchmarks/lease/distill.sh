# On one H100, from the repository root, once the parts of setup.sh lie in ~/kit; JSON and a table to $OUT:
#   bash benchmarks/lease/distill.sh ratio     benchmarks/distill.py in LIMIT (530) seconds: llama on whole documents, the headline; then calls with DATA=mixed, SHAPE=hybrid, or both
#   bash benchmarks/lease/distill.sh smollm2   SmolLM2-135M pruned by a quarter (1 to 2 min), then STEPS (600) steps of distillation (3 to 5 min); resumes where it stopped
# Every further argument is handed on. Rehearsed on a CPU: `KIT=none bash benchmarks/lease/distill.sh ratio --tiny --batches 2 --rounds 1 --steps 6`.
PART=${1:-ratio}; shift; : ${OUT:=/tmp/out}; mkdir -p $OUT
[ "$KIT" = none ] || . benchmarks/lease/setup.sh
export PYTHONPATH=$PWD:$PYTHONPATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
case $PART in
ratio)
  python benchmarks/distill.py --shape ${SHAPE:-llama} --data ${DATA:-whole} --limit ${LIMIT:-530} --json $OUT/distill-${SHAPE:-llama}-${DATA:-whole}.json "$@" 2>&1 | tee $OUT/distill.txt | cut -c1-300 ;;
smollm2)
  R=${RUNS:-$HOME/runs}; mkdir -p $R
  cat > $R/smollm2-compressed.yaml <<RECIPE
extends: $PWD/recipes/smollm2-135m.yaml
name: smollm2-compressed
about: SmolLM2-135M pruned by a quarter and distilled from what it was
stages:
  pruned: # 101M parameters at most: 0.189 GiB in bf16; the cache of one token does not count
    kind: compress
    from: base
    data: post_training
    grid: {blocks: [24, 26, 28, 30], hidden_size: [512, 576], intermediate_size: [1024, 1152, 1280, 1408, 1536]}
    memory: {gib: 0.189, context: 1}
    calibration: {length: 4096, rows: 64, depth_rows: 8, held_out_rows: 16}
    screen: 16
    best: 1
  distilled: # Minitron's peak rate for its smallest models, and a long decay
    kind: distill
    from: pruned
    teacher: base
    data: post_training
    pack: {length: 8192, over_long: drop}
    train: {learning_rate: 5.0e-4, schedule: wsd, decay_ratio: 0.5, batch_size: 8, micro_batch_size: 4, steps: ${STEPS:-600}, evaluate_every: 100, checkpoint_every: 200}
RECIPE
  python -c 'from nanoalign.cli import main; main()' run $R/smollm2-compressed.yaml --root $R --device ${DEVICE:-cuda} --until distilled "$@" 2>&1 | tee $OUT/smollm2.log | grep -v "step"
  cp $R/smollm2-compressed/report.html $R/smollm2-compressed/report.json $OUT/; cp $R/smollm2-compressed/distilled/metrics.jsonl $OUT/distilled.jsonl
  python - <<P
import json; d = json.load(open("$R/smollm2-compressed/distilled/stage.json"))["figures"]
for name in ("held_out_loss_first", "held_out_loss_last", "teacher_held_out_loss", "gap_closed", "held_out_kl_first", "held_out_kl_last", "tokens", "tokens_per_s", "train_s"): print(f"{name:24} {d[name]:.6g}")
P
  ;;
*) echo "unknown part $PART: ratio or smollm2"; exit 2 ;;
esac
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU"
