# FP8 on one Hopper GPU, run in the repository root; PART is kernels (under 90 s, torch and Triton alone), step or loss; JSON to $OUT
: ${OUT:=/tmp/out}; mkdir -p $OUT; export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}; P=${1:?kernels}; shift
case $P in
kernels) timeout ${LIMIT:-88} python3 benchmarks/fp8.py --json $OUT/fp8_kernels.json "$@" 2>&1 | tee $OUT/fp8_kernels.log ;;
esac
