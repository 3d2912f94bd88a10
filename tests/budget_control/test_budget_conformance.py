"""10,000 random token streams through the HF processor, the vLLM processor, the client and the naive reference."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import naive_budget
import pytest
import torch
from test_budget_rule import PIECES, TABLES

from nanoalign.budget_control.client import Token, enforce
from nanoalign.budget_control.hf import ThinkingBudgetProcessor
from nanoalign.budget_control.rule import BudgetRule
from nanoalign.budget_control.vocabulary import ThinkingTokens

STREAMS, ROWS, LENGTH, GRACES = 10_000, 250, 40, (0, 1, 3, 9)
WEIGHTS = [1, 1, 1, 2, 3, 3, 3, 1, 1, 6, 3, 3, 1, 1, 1, 1, *[1] * (len(PIECES) - 16)]


@dataclass
class Case:
    """Rows that are decoded together: they share tokens and grace, as a server's batch shares its tokenizer."""

    tokens: ThinkingTokens
    grace: int
    prompts: list[list[int]]
    budgets: list[int | None]
    drawn: list[list[int]]
    expected: list[list[int]] = field(default_factory=list)


def cases() -> list[Case]:
    rng = random.Random(4)
    made = []
    for number in range(STREAMS // ROWS):
        case = Case(
            TABLES[number % len(TABLES)], GRACES[number // len(TABLES) % len(GRACES)],
            [rng.choices([1, 2, 3, 5, 6, 9, 11, 23], k=rng.randrange(5)) for _ in range(ROWS)],
            [rng.choice([None, 0, *range(1, 20)]) for _ in range(ROWS)],
            [rng.choices(range(len(PIECES)), WEIGHTS, k=LENGTH) for _ in range(ROWS)],
        )  # fmt: skip
        for prompt, budget, drawn in zip(case.prompts, case.budgets, case.drawn):
            written, _ = naive_budget.enforce(
                PIECES, case.tokens.close_ids, [0], prompt, iter(drawn), budget, case.grace
            )
            case.expected.append(written)
        made.append(case)
    return made


CASES = cases()


def logits_that_draw(tokens: Sequence[int]) -> torch.Tensor:
    """float32 [B, V] whose argmax is ``tokens``, everything else in reach."""
    logits_BV = torch.rand(len(tokens), len(PIECES), generator=torch.Generator().manual_seed(len(tokens)))
    logits_BV[torch.arange(len(tokens)), torch.tensor(tokens)] = 2.0
    return logits_BV


def cut_at_stop(rows: list[list[int]]) -> list[list[int]]:
    return [row[: row.index(0) + 1] if 0 in row else row for row in rows]


def test_the_cases_exercise_the_rule() -> None:
    """Most rows think, thousands are closed by force, thousands by themselves, some never."""
    changed = sum(row != drawn[: len(row)] for case in CASES for row, drawn in zip(case.expected, case.drawn))
    assert changed > STREAMS // 4 and sum(case.budgets.count(None) for case in CASES) > 200


@pytest.mark.parametrize("padding", [0, 3])
def test_hf_processor(padding: int) -> None:
    for case in CASES:
        processor = ThinkingBudgetProcessor(case.tokens, case.budgets, case.grace)
        longest = max(map(len, case.prompts)) + padding
        ids_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in case.prompts])
        for step in range(LENGTH):
            scores = logits_that_draw([row[step] for row in case.drawn])
            ids_BT = torch.cat([ids_BT, processor(ids_BT, scores).argmax(dim=1, keepdim=True)], dim=1)
        assert cut_at_stop(ids_BT[:, longest:].tolist()) == case.expected


def test_client() -> None:
    for case in CASES:
        for prompt, budget, drawn, expected in zip(case.prompts, case.budgets, case.drawn, case.expected):
            rule = BudgetRule(case.tokens, budget, case.grace)

            def server(written: Sequence[Token], room: int, drawn: list[int] = drawn) -> Generator[Token, None, None]:
                for position in range(len(written), len(written) + room):
                    id = drawn[position]
                    yield Token(PIECES[id], id, finish="stop" if id == 0 else None)

            got = list(enforce(server, rule, rule.start(prompt), LENGTH))
            assert [token.id for token in got if token.id is not None] == expected
            assert got[-1].finish == ("stop" if expected[-1] == 0 else "length")


SLOTS = 64


def update_message(removed: list[int], added: list[tuple[int, Any]], moved: list[Any]) -> Any:
    from vllm.v1.sample.logits_processor import BatchUpdate

    if not (removed or added or moved):
        return None
    entries = [(row, request["params"], request["prompt"], request["out"]) for row, request in added]
    return BatchUpdate(batch_size=SLOTS, removed=removed, added=entries, moved=moved)


def written(request: dict[str, Any]) -> int:
    return len(request["before"]) + len(request["out"])


def continued(request: dict[str, Any]) -> None:
    """The request becomes one whose prompt ends with what it has written."""
    request["before"] = request["before"] + request["out"]
    request["prompt"], request["out"] = request["prompt"] + request["out"], []
    request["params"] = request["params"].clone()
    request["params"].extra_args["generated"] = len(request["before"])


def test_vllm_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor on vLLM's own update messages, with made-up logits: requests come and leave, are preempted and come
    back, are cut off and continued as new ones, rows are condensed and swapped, and while the batch is updated the
    newest token reads -1, as it does under asynchronous scheduling."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import MoveDirectionality

    import nanoalign.budget_control.vllm as adapter

    rng = random.Random(5)
    for case in CASES:
        monkeypatch.setattr(adapter, "_thinking_tokens", lambda config, tokens=case.tokens: tokens)
        config: Any = SimpleNamespace(speculative_config=None, scheduler_config=SimpleNamespace(max_num_seqs=SLOTS))
        processor = adapter.ThinkingBudget(config, torch.device("cpu"), False)
        requests: list[dict[str, Any]] = []
        for prompt, budget, drawn in zip(case.prompts, case.budgets, case.drawn):
            extra = {"grace": case.grace} if budget is None else {"thinking_budget": budget, "grace": case.grace}
            params = SamplingParams(extra_args=extra, stop_token_ids=[0])
            requests.append({"prompt": prompt, "params": params, "drawn": drawn, "out": [], "before": []})
        waiting, rows = list(requests), [None] * SLOTS  # type: tuple[list[Any], list[Any]]
        while waiting or any(rows):
            removed, added, moved = [], [], []
            for row, request in enumerate(rows):
                done = request is not None and (request["out"][-1:] == [0] or written(request) == LENGTH)
                if done or (request is not None and rng.random() < 0.01):
                    rows[row] = None
                    removed.append(row)
                    if not done:
                        request["out"] = list(request["out"])
                        if rng.random() < 0.5:
                            continued(request)
                        waiting.append(request)
            for row in range(SLOTS):
                if rows[row] is None and waiting and rng.random() < 0.7:
                    rows[row] = waiting.pop(0)
                    added.append((row, rows[row]))
                    removed = [other for other in removed if other != row]
            last = max((row for row in range(SLOTS) if rows[row]), default=-1)
            while None in rows[: last + 1]:
                hole = rows.index(None)
                rows[hole], rows[last] = rows[last], None
                moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
                last = max(row for row in range(SLOTS) if rows[row])
            if last > 0 and rng.random() < 0.3:
                first, second = rng.sample(range(last + 1), 2)
                rows[first], rows[second] = rows[second], rows[first]
                moved.append((first, second, MoveDirectionality.SWAP))
            live = rows[: last + 1]
            newest = [request["out"][-1:] for request in live]
            for request in live:
                request["out"][-1:] = [-1] * len(request["out"][-1:])
            processor.update_state(update_message(removed, added, moved))
            for request, tokens in zip(live, newest):
                request["out"][len(request["out"]) - len(tokens) :] = tokens
            if live:
                logits_BV = logits_that_draw([request["drawn"][written(request)] for request in live])
                for request, token in zip(live, processor.apply(logits_BV).argmax(dim=1).tolist()):
                    request["out"].append(token)
        assert [request["before"] + request["out"] for request in requests] == case.expected
