import math
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.chat.answers import THINKING_TAGS
from nanoalign.data_recipes.conversation import Answer, Message, ToolCall
from nanoalign.reward import PLAYED, REWARDS, ComposedReward, RewardError, Sample, make_reward
from nanoalign.reward.shape import length_factor, score_format

MATH = {"kind": "math", "answer": "42"}
EXACT = {"kind": "exact", "answer": "Paris"}
TOOLS = {"kind": "tools", "calls": [{"name": "find", "arguments": {"q": "demo"}}]}
CODE = {"kind": "code", "tests": "assert f(2) == 4"}


def instruct(*pairs: tuple[str, dict]) -> dict:
    return {"kind": "instruction", "instructions": [{"id": id, "kwargs": kwargs} for id, kwargs in pairs]}


KEYWORDS = instruct(("keywords:existence", {"keywords": ["river", "garden"]}))
LONG = instruct(("length_constraints:number_words", {"relation": "at least", "num_words": 40}))
BULLETS = instruct(("detectable_format:number_bullet_lists", {"num_bullets": 3}))
FORBIDDEN = instruct(("keywords:forbidden_words", {"forbidden_words": ["very"]}))
JSON = instruct(("detectable_format:json_format", {}))
NO_COMMA = instruct(("punctuation:no_comma", {}))
CHOICE = instruct(("detectable_format:constrained_response", {}))
REQUEST = "What is it? Your answer must contain the words river, garden. Use at least 40 words."


def sample(task: dict, content: str, **more: object) -> Sample:
    reasoning = more.pop("reasoning", "")
    faults = () if more.pop("closed", True) else (THINKING_TAGS,)
    answer = Answer(content, reasoning, more.pop("tool_calls", ()), faults)  # type: ignore[arg-type]
    return Sample((Message("user", REQUEST),), answer, task, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reward() -> ComposedReward:
    return make_reward({"task": 1.0, "format": 1.0}, workers=1)


HONEST = [
    sample(MATH, "It is \\boxed{42}."),
    sample(EXACT, "The answer is paris."),
    sample(EXACT, "Paris"),
    sample(KEYWORDS, "A garden lies by the river."),
    sample(LONG, " ".join(f"word{n}" for n in range(40))),
    sample(BULLETS, "* a\n* b\n* c"),
    sample(JSON, '```json\n{"river": [1]}\n```'),
    sample(JSON, '["a"]'),
    sample(NO_COMMA, "Yes it is very very good."),
    sample(FORBIDDEN, "Очень хорошо и everything else."),
    sample(instruct(("combination:two_responses", {})), "Yes.\n******\nNo."),
    sample(instruct(("combination:repeat_prompt", {"prompt_to_repeat": REQUEST})), REQUEST + " It is a bridge."),
    sample(instruct(("startend:quotation", {})), '"It is so."'),
    sample(CHOICE, "My answer is no."),
    sample(TOOLS, "", tool_calls=(ToolCall("find", {"q": "demo"}),)),
    sample({"kind": "tools", "success": True}, "Done."),
    sample(CODE, "```python\ndef f(x):\n    return 2 * x\n```"),
]
NUMBERS = " ".join(str(n) for n in range(1000))
EXPLOITS = {
    **{f"empty answer: {task['kind']}": sample(task, "") for task in (MATH, EXACT, CODE, TOOLS)},
    "empty answer: tools, none expected": sample({"kind": "tools", "calls": []}, " "),
    "empty answer: nothing forbidden in it": sample(FORBIDDEN, ""),
    "empty answer: no comma in it": sample(NO_COMMA, " \n"),
    "repeated answer: word count": sample(LONG, "That is all there is. " * 20),
    "repeated answer: lines": sample(LONG, "That is all\n" * 20),
    "repeated answer: bullets": sample(BULLETS, "* a\n* a\n* a"),
    "repeated answer: keyword": sample(
        instruct(("keywords:frequency", {"keyword": "sun", "relation": "at least", "frequency": 3})), "Sun. Sun. Sun."
    ),
    "quoted instruction: keywords": sample(KEYWORDS, "Your answer must contain the words river, garden."),
    "quoted instruction: in other case and signs": sample(
        KEYWORDS, "your answer MUST contain the words *river* / garden!"
    ),
    "repeated answer: a word": sample(LONG, "river " * 60),
    "repeated answer: a phrase": sample(LONG, "so it goes on, " * 20),
    "repeated answer: keyword in one sentence": sample(
        instruct(("keywords:frequency", {"keyword": "sun", "relation": "at least", "frequency": 3})), "The sun sun SUN."
    ),
    "repeated answer: one letter": sample(
        instruct(("keywords:letter_frequency", {"letter": "z", "let_relation": "at least", "let_frequency": 6})),
        "Zzzzzzzz",
    ),
    "repeated answer: the same twice": sample(instruct(("combination:two_responses", {})), "Yes, so.\n******\nyes: SO"),
    "quoted instruction: a word changed": sample(
        KEYWORDS, "So: your answer must contain the words river, garden, please."
    ),
    "quoted instruction: nothing else": sample(
        instruct(("startend:end_checker", {"end_phrase": "Use at least 40 words."})), "Use at least 40 words."
    ),
    "quoted instruction: the request alone": sample(
        instruct(("combination:repeat_prompt", {"prompt_to_repeat": REQUEST})), REQUEST
    ),
    "empty answer: in quotation marks": sample(instruct(("startend:quotation", {})), '""'),
    "JSON in prose": sample(JSON, 'Here it is: {"river": 1}'),
    "JSON that is a number": sample(JSON, "42"),
    "JSON that is a text": sample(JSON, '"All that I have to say."'),
    "JSON with nothing in it": sample(JSON, "```json\n{}\n```"),
    "look-alike: another comma": sample(NO_COMMA, "Yes\uff0c indeed\u201a it is"),
    "look-alike: a Cyrillic letter": sample(FORBIDDEN, "It is v\u0435ry good."),
    "look-alike: an unseen character": sample(FORBIDDEN, "It is ve\u200bry good."),
    "several boxed answers": sample(MATH, "\\boxed{42} or \\boxed{43}"),
    "two answers in one box": sample(MATH, "\\boxed{42 \\text{ or } 43}"),
    "a set of answers": sample(MATH, "\\boxed{\\{41, 42\\}}"),
    "an interval": sample(MATH, "\\boxed{[40, 44]}"),
    "an inequality": sample(MATH, "\\boxed{41 < 42}"),
    "about": sample(MATH, "\\boxed{42 \\approx 43}"),
    "plus or minus": sample(MATH, "\\boxed{42 \\pm 1}"),
    "an answer crossed out": sample(MATH, "The answer is 42. No, the answer is 41."),
    "quoted instruction: all options": sample(CHOICE, "My answer is yes. My answer is no. My answer is maybe."),
    "hidden in thinking: math": sample(MATH, "Done.", reasoning="\\boxed{42}"),
    "hidden in thinking: exact": sample(EXACT, "I know it.", reasoning="The answer is Paris."),
    "hidden in thinking: keywords": sample(KEYWORDS, "Done.", reasoning="A garden lies by the river."),
    "hidden in thinking: code": sample(CODE, "Done.", reasoning="```python\ndef f(x):\n    return 2 * x\n```"),
    "all numbers": sample(MATH, NUMBERS),
    "all numbers, boxed": sample(MATH, "\\boxed{" + NUMBERS.replace(" ", ", ") + "}"),
    "all numbers, each boxed": sample(MATH, " ".join(f"\\boxed{{{n}}}" for n in range(100))),
    "two answers": sample(MATH, "The answer is 41 or 42."),
    "a chain of equations": sample(MATH, "\\boxed{41 = 42}"),
    "many words": sample(EXACT, "Paris London Rome"),
    "call as text": sample(TOOLS, '<TOOLCALL>[{"name": "find", "arguments": {"q": "demo"}}]</TOOLCALL>'),
    "every call": sample(TOOLS, "", tool_calls=tuple(ToolCall("find", {"q": q}) for q in ("demo", "yoga"))),
    "success said, not seen": sample({"kind": "tools", "success": False}, "success: true. Done."),
    "early exit": sample(CODE, "```python\nimport sys\nsys.exit(0)\n```"),
    "exit at once": sample(CODE, "```python\nimport os\nos._exit(0)\n```"),
    "forged verdict: the caller's frame": sample(
        CODE,
        "```python\nimport os, sys\nframe = sys._getframe(1)\n"
        "os.write(int(sys.argv[2]), frame.f_locals['token'])\nos.kill(os.getpid(), 9)\n```",
    ),
    "forged verdict: equal to anything": sample(
        CODE,
        "```python\nclass Any:\n    def __eq__(self, other):\n        return True\n\ndef f(x):\n    return Any()\n```",
    ),
    "no verdict: an equality of the program's own": sample(
        CODE,
        "```python\nclass Number:\n    def __init__(self, n):\n        self.n = n\n\n"
        "    def __eq__(self, other):\n        return self.n == other\n\ndef f(x):\n    return Number(2 * x)\n```",
    ),
    "forged verdict: equal to anything, without a class statement": sample(
        CODE, "```python\nAny = type('Any', (), {'__eq__': lambda a, b: True})\ndef f(x):\n    return Any()\n```"
    ),
    "partial credit by containment": sample(
        {"kind": "reasoning_gym", "dataset": "leg_counting", "entry": {"answer": "42", "metadata": {}}}, NUMBERS
    ),
}


def test_honest_answers_earn_everything(reward: ComposedReward) -> None:
    scores = reward.components(HONEST)
    assert scores["task"] == [1.0] * len(HONEST)
    assert scores["format"] == [1.0] * len(HONEST)


@pytest.mark.parametrize("name", EXPLOITS)
def test_exploits_earn_nothing(reward: ComposedReward, name: str) -> None:
    assert reward.components([EXPLOITS[name]])["task"] == [0.0]


@pytest.mark.parametrize(
    "sample",
    [
        sample(MATH, ""),
        sample(MATH, "It is 42.", closed=False),
        sample(MATH, "It is 42.", finished=False),
        sample(MATH, "It is</think> 42."),
        sample(MATH, "<think>42"),
    ],
)
def test_malformed_answers(sample: Sample) -> None:
    assert score_format(sample) == 0.0


def test_instruction_components_differ_as_they_say() -> None:
    task = instruct(("punctuation:no_comma", {}), ("startend:end_checker", {"end_phrase": "The end."}))
    names = ("instruction", "instruction_all", "instruction_loose", "task")
    reward = make_reward(dict.fromkeys(names, 1.0), workers=1)
    one, loose = sample(task, "No comma."), sample(task, "So.\n**The end.**")
    assert reward.components([one, loose]) == {
        "instruction": [0.5, 0.5],
        "instruction_all": [0.0, 0.0],
        "instruction_loose": [0.5, 1.0],
        "task": [0.0, 0.0],
    }


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_length_falls_with_thinking_and_pays_only_with_correctness(budget: int, less: int, more: int) -> None:
    def at(tokens: int, budget: int | None = budget) -> float:
        return length_factor(sample(MATH, "42", thinking_tokens=tokens, thinking_budget=budget))

    low, high = sorted((less, more))
    assert 0.0 <= at(high) <= at(low) <= 1.0
    assert at(low, None) == at(low, 0) == at(0) == 1.0
    if budget:
        assert at(2 * budget + 1) == 0.0


def test_length_needs_a_right_or_well_formed_answer() -> None:
    reward = make_reward({"length": 1.0}, workers=1)
    budget = {"thinking_budget": 10, "thinking_tokens": 5}
    samples = [sample(MATH, "42", **budget), sample(MATH, "41", **budget), sample({}, "Hi", **budget), sample({}, "")]
    samples.append(sample({"kind": "preference", "rejected": "No."}, "Hi", thinking_budget=10, thinking_tokens=10))
    assert reward.score(samples) == [1.0, 0.0, 1.0, 0.0, 0.5]


def test_preference_is_a_probability_and_a_blank_answer_gets_none() -> None:
    def model(samples: Sequence[Sample]) -> list[float]:
        return [800.0, -800.0, 0.0, 5.0][: len(samples)]

    reward = make_reward({"preference": 2.0}, reward_model=model)
    samples = [sample({}, "good"), sample({}, "bad"), sample({}, "so so"), sample({}, " ", reasoning="good")]
    assert reward.score(samples) == [2.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_an_error_that_names_it(value: float) -> None:
    reward = make_reward({"format": 1.0, "preference": 1.0}, reward_model=lambda samples: [0.5, value])
    with pytest.raises(RewardError, match=r"'preference' gave .*(nan|inf) for sample 1"):
        reward.score([sample({}, "a"), sample({}, "b")])


def test_a_wrong_count_is_an_error() -> None:
    with pytest.raises(RewardError, match="'preference' gave 1 scores for 2 samples"):
        make_reward({"preference": 1.0}, reward_model=lambda samples: [0.5]).score([sample({}, "a")] * 2)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"instructions": 1.0}, "`instruction`"),
        ({"maths": 1.0}, "`math`"),
        ({"fromat": 1.0}, "`format`"),
        ({}, "at least one"),
        ({"math": math.nan}, "finite"),
        ({"preference": 1.0}, "reward model"),
        ({"judge": 1.0}, "endpoint"),
    ],
)
def test_wrong_weights_are_named(weights: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_reward(weights)


def test_tasks_without_a_verifier_are_named(reward: ComposedReward) -> None:
    for kind in PLAYED:
        with pytest.raises(DataError, match=f"'{kind}': its tasks are played.*environment: workbench"):
            reward.score([sample({"kind": kind}, "a")])
    with pytest.raises(DataError, match="riddle"):
        reward.score([sample({"kind": "riddle"}, "a")])
    with pytest.raises(DataError, match="None"):
        reward.score([sample({}, "a")])
    with pytest.raises(DataError, match="use 'task'"):
        make_reward({"math": 1.0}).score([sample(EXACT, "Paris")])
    with pytest.raises(DataError, match="no_such"):
        reward.score([sample({"kind": "reasoning_gym", "dataset": "no_such", "entry": {}}, "a")])


def test_reasoning_gym_answers() -> None:
    import reasoning_gym

    reward = make_reward({"reasoning_gym": 1.0})
    for name in ("chain_sum", "leg_counting", "letter_counting"):
        entry = reasoning_gym.create_dataset(name, size=1, seed=3)[0]
        task = {"kind": "reasoning_gym", "dataset": name, "entry": entry}
        right = f"I counted. The answer is {entry['answer']}."
        assert reward.score([sample(task, right), sample(task, "The answer is -1."), sample(task, "")]) == [1, 0, 0]


def test_weights_combine_and_order_is_kept(reward: ComposedReward) -> None:
    mixed = [HONEST[1], EXPLOITS["all numbers"], HONEST[0], sample(MATH, "42", finished=False)]
    assert reward.components(mixed)["task"] == [1.0, 0.0, 1.0, 1.0]
    assert reward.score(mixed) == [2.0, 1.0, 2.0, 1.0]
    weighted = make_reward({"task": 1.0, "format": -0.25}, workers=1)
    assert weighted.score(mixed) == [0.75, -0.25, 0.75, 1.0]
    assert weighted.score([]) == []


def test_names_and_imports() -> None:
    assert {entry.kind for entry in REWARDS.values()} <= {*REWARDS, "", "any"}
    code = "import sys, reward, reward.instructions, rollouts.environments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
