"""The chat template that a model is saved with renders what was trained, in transformers as in our own formats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoalign.data_recipes.chat import CHAT_FORMATS, chat_format
from nanoalign.data_recipes.chat.render import call_object, signalled_mode, without_signals
from nanoalign.data_recipes.chat.saved import save_chat_template
from nanoalign.data_recipes.conversation import Message, ToolCall

often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PIECES = [
    "/think",
    "/no_think",
    "/",
    "think",
    "no_",
    "<",
    ">",
    "_",
    "é",
    "数",
    "²",
    " ",
    "\n",
    ".",
    "a",
    "1",
    "</think>",
    "{{",
    '"',
]
texts = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(ToolCall, texts, st.dictionaries(texts, json_values, max_size=2))
tools = st.lists(
    st.fixed_dictionaries({"name": texts, "description": texts, "parameters": st.dictionaries(texts, json_values)}),
    max_size=2,
)


@st.composite
def histories(draw: st.DrawFn) -> list[Message]:
    """Any order of messages that the format takes, ending anywhere."""
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for role in draw(st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=6)):
        if role == "assistant":
            reasoning = draw(st.none() | texts)
            messages.append(Message("assistant", draw(texts), reasoning, tuple(draw(st.lists(calls, max_size=2)))))
        else:
            messages.append(Message(role, draw(texts)))  # type: ignore[arg-type]
    return messages


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    """As the clients of transformers and vLLM write them."""
    rows = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            row["reasoning_content"] = message.reasoning
        if message.tool_calls:
            row["tool_calls"] = [{"type": "function", "function": call_object(call)} for call in message.tool_calls]
        rows.append(row)
    return rows


def rendered(tokenizer: Any, name: str, messages: list[Message], tools: Any, *, generate: bool, **switch: Any) -> str:
    return tokenizer.apply_chat_template(
        as_dicts(messages),
        chat_template=chat_format(name).template(),
        tools=[{"type": "function", "function": tool} for tool in tools] or None,
        tokenize=False,
        add_generation_prompt=generate,
        **switch,
    )


@pytest.mark.parametrize("name", CHAT_FORMATS)
@often
@given(messages=histories(), tools=tools, thinking=st.sampled_from([True, False, None]))
def test_a_prompt_is_ours(
    name: str, messages: list[Message], tools: Any, thinking: bool | None, gpt2_like: Any
) -> None:
    switch = {} if thinking is None else {"enable_thinking": thinking}
    for end in range(1, len(messages) + 1):
        ours = chat_format(name).prompt(messages[:end], tools, thinking=thinking)
        assert rendered(gpt2_like, name, messages[:end], tools, generate=True, **switch) == ours


@pytest.mark.parametrize("name", CHAT_FORMATS)
@often
@given(messages=histories(), tools=tools)
def test_a_whole_conversation_is_what_was_trained(
    name: str, messages: list[Message], tools: Any, gpt2_like: Any
) -> None:
    chat = chat_format(name)
    for end, message in enumerate(messages):
        if message.role == "assistant":
            message = replace(message, reasoning=message.reasoning or None)
            trained = chat.prompt(messages[:end], tools, thinking=message.thinks)
            trained += "".join(span.text for span in chat.completion(message))
            assert rendered(gpt2_like, name, [*messages[:end], message], tools, generate=False) == trained


@often
@given(texts)
def test_signals_are_read_as_we_read_them(gpt2_like: Any, text: str) -> None:
    message = Message("user", text)
    ours = f"<|im_start|>user\n{without_signals(text)}<|im_end|>\n<|im_start|>assistant\n"
    ours += "<think>\n" if signalled_mode([message]) else ""
    assert rendered(gpt2_like, "chatml", [message], [], generate=True) == ours


def test_a_call_whose_arguments_are_json_text_is_written_as_it_is(gpt2_like: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    for name in CHAT_FORMATS:
        chat = chat_format(name)
        text = gpt2_like.apply_chat_template(
            messages, chat_template=chat.template(), tokenize=False, add_generation_prompt=True
        )
        ours = [Message("user", "1+1?"), Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1}),))]
        assert text == chat.prompt(ours)


def test_nulls_that_a_server_fills_in_are_not_shown(gpt2_like: Any) -> None:
    """vLLM hands over ``description: null`` and ``parameters: null`` for what a tool leaves out."""
    asked = [Message("user", "what time is it?")]
    for name in CHAT_FORMATS:
        filled = [{"name": "now", "description": None, "parameters": None}]
        assert rendered(gpt2_like, name, asked, filled, generate=True) == chat_format(name).prompt(
            asked, [{"name": "now"}]
        )


def test_a_saved_template_is_found_beside_the_model(tmp_path: Path, gpt2_like: Any) -> None:
    from transformers import AutoTokenizer

    gpt2_like.chat_template = {"default": "theirs", "tool_use": "theirs, for tools"}
    gpt2_like.save_pretrained(tmp_path)
    gpt2_like.chat_template = None
    for name in CHAT_FORMATS:
        save_chat_template(chat_format(name), tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer.chat_template == chat_format(name).template()
    again = chat_format(f"hf:{tmp_path}")
    assert again.template() == chat_format("llama3").template()


def test_the_template_takes_the_switches_that_a_server_passes_on() -> None:
    """vLLM hands a template those keywords alone that it uses."""
    import jinja2.meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    for name in CHAT_FORMATS:
        free = jinja2.meta.find_undeclared_variables(environment.parse(chat_format(name).template()))
        assert free - {"raise_exception"} == {"messages", "tools", "add_generation_prompt", "enable_thinking"}
