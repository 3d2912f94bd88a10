"""A pruned checkpoint in a real vLLM, as it was written, beside transformers."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm", reason="vLLM is not installed")

from nanoalign.compress.config import Budget, Throughput
from nanoalign.compress.shapes import own_widths
from nanoalign.compress.surgery import Kept, write_pruned
from nanoalign.compress.vllm_speed import command
from nanoalign.data_recipes.chat import chat_format
from nanoalign.models.loading import load_model, load_tokenizer, save_model
from nanoalign.models.model_folder import read_config
from nanoalign.rollouts import open_engine
from tests.tiny import tied_llama, tiny_tokenizer, token_ids

CHAT = "nemotron-nano-v2"


def _pruned(name: str, folder: Path) -> Path:
    """The miniature without a Mamba-2, an attention and an MLP block, narrower everywhere; a Llama without a layer."""
    if name == "miniature":
        source: Any = Path(__file__).resolve().parents[2] / "recipes/assets/miniature-base"
        kept = Kept(
            [0, 1, 3, 5, 6, 7, 8, 10, 11], range(160), dict.fromkeys(range(12), range(512)),
            {block: [0, 2] for block in range(12)}, dict.fromkeys(range(12), range(1, 5)),
            dict.fromkeys(range(12), range(48)),
        )  # fmt: skip
        sizes = {"hidden_size": 160, "intermediate_size": 512, "num_attention_heads": 2, "mamba_num_heads": 4,
                 "mamba_head_dim": 48}  # fmt: skip
    else:
        source, tokenizer = folder.with_name("whole"), tiny_tokenizer(CHAT)
        save_model(tied_llama(len(tokenizer), **token_ids(tokenizer)), tokenizer, source)
        kept = Kept([1], range(8, 56), {0: range(64), 1: range(64)}, {0: [1], 1: [1]})
        sizes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 1}
    write_pruned(source, kept, replace(own_widths(read_config(source)), **sizes), folder)
    return folder


@pytest.mark.parametrize("name", ["miniature", "llama"])
def test_vllm_computes_what_transformers_computes(name: str, tmp_path: Path):
    folder = _pruned(name, tmp_path / "pruned")
    chat, tokenizer = chat_format(CHAT), load_tokenizer(folder)
    texts = ["<SPECIAL_11>User\nWhat is 17 + 25?\n<SPECIAL_11>Assistant\n<think>\n", "7 + 8 = 15, so"]
    sequences = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    vllm = open_engine("vllm", folder, tokenizer, chat, batch_size=2, max_length=128)
    try:
        found = vllm.score(sequences)
    finally:
        vllm.close()
    expected = open_engine("hf", load_model(folder), tokenizer, chat, batch_size=2).score(sequences)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)


def test_vllm_knows_the_options_of_the_measurement():
    """Its own parser reads the command; the key of the result is in its source."""
    import inspect

    from vllm.benchmarks import throughput
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    settings = Throughput(batch=3, prompt=7, answer=5)
    words = command(Path("model"), settings, Budget(weights="fp8", cache="fp8"))
    parser = FlexibleArgumentParser()
    throughput.add_cli_args(parser)
    parsed = parser.parse_args([*words[words.index("throughput") + 1 :], "--output-json", "result.json"])
    assert (parsed.num_prompts, parsed.input_len, parsed.output_len, parsed.max_num_seqs) == (3, 7, 5, 3)
    assert (parsed.dtype, parsed.quantization, parsed.kv_cache_dtype) == ("bfloat16", "fp8", "fp8")
    assert '"elapsed_time": elapsed_time' in inspect.getsource(throughput.main)
