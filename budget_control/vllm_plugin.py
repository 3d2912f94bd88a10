"""A plugin for vLLM (entry point ``vllm.general_plugins``): each of its processes calls it before it loads a model."""

from typing import Any


def serve_float32_hybrids_on_cpus() -> None:
    """vLLM's CPU build (0.31) packs the weights of convolutions on processors with AVX-512 BF16, in whatever precision
    they are; only bfloat16 can be packed, so that hybrids in float32 do not load there. Others are left as they are,
    which is what these builds do on all other processors."""
    import torch
    from vllm.model_executor.layers import utils

    dispatch = getattr(utils, "dispatch_cpu_unquantized_gemm", None)
    if dispatch is None or torch.cuda.is_available():
        return

    def only_what_can_be_packed(layer: Any, *arguments: Any, **more: Any) -> None:
        convolution = layer.weight.ndim == 3 and not layer.weight.is_meta
        if not convolution or layer.weight.dtype == torch.bfloat16:
            dispatch(layer, *arguments, **more)

    if dispatch.__name__ != only_what_can_be_packed.__name__:
        utils.dispatch_cpu_unquantized_gemm = only_what_can_be_packed
