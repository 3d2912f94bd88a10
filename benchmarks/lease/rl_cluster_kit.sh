# Packs all that rl_cluster.sh needs into .gpu-cluster/part0, part1, ... of LIMIT bytes, one a call: SHARED=/work/shared bash THIS
# Every archive unpacks by itself, so that a machine unpacks one while the next is on its way; slow (xz), so once. KIT keeps the archives.
set -euo pipefail
S=${SHARED:?}; K=${KIT:-/tmp/rl_cluster_kit}; mkdir -p $K
for kind in small vllm smollm2; do [ -d .gpu-$kind ] || bash $S/gpu/pack.sh $kind .gpu-$kind; done
[ -e $K/small.tar.xz ] || cat .gpu-small/part*/kit.* | xz -d | xz -T2 -6 > $K/small.tar.xz
tar c -C $S/data ${DATA:-ifeval workbench nltk_data gsm8k math} | xz -6 > $K/data.tar.xz
rm -f $K/real.tar.xz; [ -z "${SOURCES:-}" ] || tar c -C $SOURCES . | xz -6 > $K/real.tar.xz # real.sh's
cat .gpu-smollm2/part*/kit.* > $K/smollm2.tar.xz
if [ ! -e $K/vllm.tar.xz ]; then
  W=$(mktemp -d); cat .gpu-vllm/part*/kit.* | tar xJ -C $W
  rm -rf $W/xgrammar/lib/libxgrammar.a $W/pycountry/locales $W/mistral_common/data # never read here
  i=0
  for each in vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so vllm/_C_stable_libtorch.abi3.so vllm/_moe_C_stable_libtorch.abi3.so xgrammar/libxgrammar_bindings.so; do
    i=$((i + 1)); tar c -C $W $each | xz -T2 -5 > $K/big$i.tar.xz; rm $W/$each
  done
  tar c -C $W . | xz -T2 -7 > $K/partial; mv $K/partial $K/vllm.tar.xz; rm -r $W
fi
rm -rf .gpu-cluster
python3 - $K ${LIMIT:-50000000} << 'P'
import hashlib, sys
from pathlib import Path
kit, limit = Path(sys.argv[1]), int(sys.argv[2])
# SmolLM2 and the small kit first: a model for DPO is trained, and the 9B's weights are made, while vLLM travels
names = ["small.tar.xz", "data.tar.xz", *["real.tar.xz"] * (kit / "real.tar.xz").exists()]
names += ["smollm2.tar.xz", "vllm.tar.xz", "big2.tar.xz", "big3.tar.xz", "big1.tar.xz", "big4.tar.xz"]
names += ["lmeval.tar.xz"] * (kit / "lmeval.tar.xz").exists()  # lm_eval_kit.sh, for serving.sh wall
part, room, manifest = 0, limit, []
for name in names:
    data, pieces, at = (kit / name).read_bytes(), 0, 0
    while at < len(data):
        if room == 0:
            part, room = part + 1, limit
        piece = data[at : at + room]
        folder = Path(f".gpu-cluster/part{part}"); folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}@{pieces}").write_bytes(piece)
        at, room, pieces = at + len(piece), room - len(piece), pieces + 1
    manifest.append(f"{name} {pieces} {hashlib.sha256(data).hexdigest()}")
Path(".gpu-cluster/part0/manifest").write_text("\n".join(manifest) + "\n")
P
cat .gpu-cluster/part0/manifest; du -s --apparent-size -B1 .gpu-cluster/part*
