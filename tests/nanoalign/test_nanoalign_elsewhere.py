"""A finished stage's model works elsewhere as it is: transformers' pipeline, vLLM's chat endpoint, lm-eval."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.chat.render import call_object
from nanoalign.data_recipes.conversation import Message, ToolCall
from tests.nanoalign.small_runs import run_real

CHAT = chat_format("nemotron-nano-v2")
TOOLS = ({"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {"a": {}}}},)
TALK = [
    Message("system", "Be brief."),
    Message("user", "2+2?"),
    Message("assistant", "", "A sum.", (ToolCall("add", {"a": 2}),)),
    Message("tool", "4"),
    Message("assistant", "4.", ""),
    Message("user", "3+3? /no_think"),
    Message("assistant", "6."),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a stage that the runner has run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return run_real(folder, "made", "stages.first.train.steps=2") / "model"


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    rows = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            row["reasoning_content"] = message.reasoning
        if message.tool_calls:
            row["tool_calls"] = [{"type": "function", "function": call_object(call)} for call in message.tool_calls]
        rows.append(row)
    return rows


def test_the_saved_template_renders_ours_for_every_prefix(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    for end in range(1, len(TALK) + 1):
        for tools in ((), TOOLS):
            for switch in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                text = tokenizer.apply_chat_template(
                    as_dicts(TALK[:end]), tools=[{"type": "function", "function": tool} for tool in tools] or None,
                    tokenize=False, add_generation_prompt=True, **switch,
                )  # fmt: skip
                assert text == CHAT.prompt(TALK[:end], tools, thinking=switch.get("enable_thinking"))


def test_the_folder_says_where_turns_end_and_what_it_is(model: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    ends = GenerationConfig.from_pretrained(model).eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.convert_tokens_to_ids(CHAT.stop[0]) in ends
    card = (model / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert "| miniature:math | 60 |" in card and "| trained tokens |" in card


def test_transformers_pipeline_asks_as_we_do_and_ends_where_turns_end(model: Path) -> None:
    from transformers import LogitsProcessor, LogitsProcessorList, pipeline

    talk = pipeline("text-generation", str(model), device="cpu")
    end, seen = talk.tokenizer.convert_tokens_to_ids(CHAT.stop[0]), []  # type: ignore[var-annotated]

    class EndsAfterFive(LogitsProcessor):
        """The model writes its stop token sixth, whatever it has learned."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            seen.append(input_ids[0].tolist())
            scores[:, end] = float("inf") if len(seen) == 6 else -float("inf")
            return scores

    for thinking in (True, False):
        seen.clear()
        asked = [{"role": "user", "content": "What is 2 + 2?"}]
        [told] = talk(
            asked, max_new_tokens=50, do_sample=False, logits_processor=LogitsProcessorList([EndsAfterFive()]),
            tokenizer_encode_kwargs={"enable_thinking": thinking},
        )  # fmt: skip
        ours = CHAT.prompt([Message("user", "What is 2 + 2?")], thinking=thinking)
        assert seen[0] == talk.tokenizer(ours, add_special_tokens=False).input_ids
        assert len(seen) == 6 and told["generated_text"][-1]["role"] == "assistant"


@pytest.fixture(scope="module")
def vllm_url(model: Path) -> Iterator[str]:
    """vLLM's own server, without anything of ours (its CPU build has no `vllm serve`)."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    arguments = ["--served-model-name", "made", "--enforce-eager", "--dtype", "float32", "--max-model-len", "512",
                 "--max-num-seqs", "4", "--port", str(port), "--host", "127.0.0.1"]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    log = model.parent / "vllm.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        end = time.monotonic() + 500
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        process.terminate()
        process.wait(60)


def test_vllms_chat_endpoint_serves_it_with_the_thinking_switch(model: Path, vllm_url: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    for thinking in (True, False):
        body = {
            "logit_bias": {tokenizer.convert_tokens_to_ids(CHAT.stop[0]): 100},  # ends at once, where it can end
            "model": "made", "temperature": 0, "max_tokens": 20, "return_token_ids": True,
            "messages": as_dicts(TALK[:2]), "tools": [{"type": "function", "function": TOOLS[0]}],
            "tool_choice": "none", "chat_template_kwargs": {"enable_thinking": thinking},
        }  # fmt: skip
        request = urllib.request.Request(vllm_url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        shown = [] if tokenizer.decode(answer["prompt_token_ids"]).find("add") < 0 else TOOLS
        ours = CHAT.prompt(TALK[:2], tuple(shown), thinking=thinking)
        assert answer["prompt_token_ids"] == tokenizer(ours, add_special_tokens=False).input_ids
        assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 1


def test_lm_eval_measures_it(model: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"What is {i} + 1?", "a": f"{i + 1}"}) + "\n" for i in range(3)))
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump({
        "task": "sums", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": [CHAT.stop[0]], "max_gen_toks": 64, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }))  # fmt: skip
    from lm_eval.tasks import TaskManager

    result = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(model), "device": "cpu", "dtype": "float32"}, tasks=["sums"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False), apply_chat_template=True,
    )  # fmt: skip
    assert 0 <= result["results"]["sums"]["exact_match,none"] <= 1
    [first] = [each for each in result["samples"]["sums"] if each["doc_id"] == 0]
    assert first["arguments"][0][0] == CHAT.prompt([Message("user", "What is 0 + 1?")])
