"""Tasks whose answers can be checked: mathematics, code, instructions."""

import re
from typing import Any

from nanoalign.data_recipes.adapters.parts import NotASample, Raw, turn
from nanoalign.data_recipes.readers import RowError


def gsm8k(raw: Raw) -> list[dict[str, Any]]:
    """``question``, ``answer``: the worked solution is the reasoning, without its ``<<16-3=13>>`` calculator notes;
    what follows ``####`` is the answer."""
    solution, mark, answer = raw["answer"].rpartition("####")
    if not mark:
        raise RowError("empty answer", "the solution has no '####'")
    reasoning = re.sub(r"<<.*?>>", "", solution).strip()
    return [_math(raw["question"], answer.strip().replace(",", ""), reasoning)]


def _math(question: str, answer: str, reasoning: str | None = None, content: str | None = None) -> dict[str, Any]:
    if not answer.strip():
        raise NotASample("no answer to compare with")
    message = turn("assistant", content or f"The answer is \\boxed{{{answer}}}.")
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    return {"messages": [turn("user", question), message], "task": {"kind": "math", "answer": answer}}


def math_answer(raw: Raw) -> list[dict[str, Any]]:
    """``problem`` and ``answer``, with ``solution`` as reasoning where there is one (AIME)."""
    return [_math(raw["problem"], str(raw["answer"]), raw.get("solution"))]


def distilled_math(raw: Raw) -> list[dict[str, Any]]:
    """A teacher's ``message_thinking`` and ``message_content`` for a ``problem`` with a ``gtruth_answer``."""
    return [_math(raw["problem"], str(raw["gtruth_answer"]), raw["message_thinking"], raw["message_content"])]


def ifeval(raw: Raw) -> list[dict[str, Any]]:
    """A prompt with verifiable instructions and no answer."""
    pairs = zip(raw["instruction_id_list"], raw["kwargs"], strict=True)
    instructions = [
        {"id": name, "kwargs": {k: v for k, v in kwargs.items() if v is not None}} for name, kwargs in pairs
    ]
    task = {"kind": "instruction", "instructions": instructions}
    return [{"id": str(raw["key"]), "messages": [turn("user", raw["prompt"])], "task": task}]


def human_eval(raw: Raw) -> list[dict[str, Any]]:
    """HumanEval: a function to complete; the task holds the tests."""
    code = f"```python\n{raw['prompt']}{raw['canonical_solution'].rstrip()}\n```"
    prompt = (
        f"Complete this Python function. Answer with the whole function.\n\n```python\n{raw['prompt'].rstrip()}\n```"
    )
    task = {"kind": "code", "tests": f"{raw['test'].rstrip()}\n\ncheck({raw['entry_point']})"}
    return [{"id": raw["task_id"], "messages": [turn("user", prompt), turn("assistant", code)], "task": task}]


def mbpp(raw: Raw) -> list[dict[str, Any]]:
    """Sanitized MBPP: a prompt, code, and asserts."""
    prompt = f"{raw['prompt']}\nYour code should pass this test:\n{raw['test_list'][0]}"
    tests = "\n".join([*raw.get("test_imports", []), *raw["test_list"]])
    answer = turn("assistant", f"```python\n{raw['code'].strip()}\n```")
    return [
        {
            "id": str(raw["task_id"]),
            "messages": [turn("user", prompt), answer],
            "task": {"kind": "code", "tests": tests},
        }
    ]
