# Packs all that rl_cluster.sh needs into .gpu-cluster/part0, part1, ...: five calls carry what pack.sh's archives need ten for. Every archive
# unpacks by itself, so that a machine unpacks one while the next is on its way. SHARED=/work/shared bash benchmarks/lease/rl_cluster_kit.sh
set -euo pipefail
S=${SHARED:?}; W=$(mktemp -d); LIMIT=${LIMIT:-$((51 * 1000 * 1000))}; trap 'rm -rf $W' EXIT
for kind in small vllm smollm2; do [ -d .gpu-$kind ] || bash $S/gpu/pack.sh $kind .gpu-$kind; done
mkdir -p $W/vllm $W/small $W/out
cat .gpu-small/part*/kit.* | tar xJ -C $W/small
cat .gpu-vllm/part*/kit.* | tar xJ -C $W/vllm
cat .gpu-smollm2/part*/kit.* | tar xJ -C $W --wildcards '*.gguf' && mv $(find $W -name '*.gguf') $W/smollm2.gguf
cd $W/vllm # what vLLM never reads here
rm -rf xgrammar/lib/libxgrammar.a pycountry/locales mistral_common/data/tekken_240718.json
(cd $W/small && for each in *; do [ -e $W/vllm/$each ] && [ -e $each ] && rm -rf $W/vllm/$each; done; true) # the small kit's go first
big="vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so vllm/_C_stable_libtorch.abi3.so vllm/_moe_C_stable_libtorch.abi3.so xgrammar/libxgrammar_bindings.so"
i=0; for each in $big; do i=$((i + 1)); tar c $each | xz -T2 -5 > $W/out/big$i.tar.xz; rm $each; done
tar c . | xz -T2 -6 > $W/out/vllm.tar.xz
tar c -C $W/small . | xz -T2 -6 > $W/out/small.tar.xz
tar c -C $S/data ifeval workbench nltk_data | xz -6 > $W/out/data.tar.xz
cd - > /dev/null; rm -rf .gpu-cluster
python3 - $W $LIMIT << 'P'
import os, sys
work, limit = sys.argv[1], int(sys.argv[2])
size = {name: os.path.getsize(f"{work}/out/{name}") for name in os.listdir(f"{work}/out")}
print(size)
gguf = open(f"{work}/smollm2.gguf", "rb").read()
# SmolLM2 and the small kit first: a model for DPO is trained, and the 9B's weights are made, while vLLM travels
parts = [["small.tar.xz", "data.tar.xz"]]
room = limit - sum(size[name] for name in parts[0])
pieces = [gguf[:room], gguf[room : room + limit]]
assert room + limit >= len(gguf)
left = limit - len(pieces[1])
order, parts = sorted((n for n in size if n not in parts[0]), key=size.get, reverse=True), [parts[0], []]
for name in order:
    for part in parts[1:]:
        used = sum(size[n] for n in part) + (len(pieces[1]) if part is parts[1] else 0)
        if used + size[name] <= limit:
            part.append(name); break
    else:
        assert size[name] <= limit, name
        parts.append([name])
for number, part in enumerate(parts):
    os.makedirs(f".gpu-cluster/part{number}")
    for name in part: os.rename(f"{work}/out/{name}", f".gpu-cluster/part{number}/{name}")
    if number < 2: open(f".gpu-cluster/part{number}/gguf.{number}", "wb").write(pieces[number])
open(".gpu-cluster/part0/gguf.sha256", "w").write(__import__("hashlib").sha256(gguf).hexdigest())
P
du -sh --apparent-size .gpu-cluster/part*
