"""Trained text equals inference text, for every format, prefix and tokenizer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import CheckpointError, ConfigError, DataError
from nanoalign.data_recipes.chat import CHAT_FORMATS, answers, chat_format
from nanoalign.data_recipes.chat.answers import as_message
from nanoalign.data_recipes.chat.nemotron import NemotronNanoV2, NemotronNanoV2Reference
from nanoalign.data_recipes.chat.template import HFTemplate
from nanoalign.data_recipes.conversation import Answer, Conversation, Message, ToolCall
from nanoalign.data_recipes.tokenize import ExampleEncoder, encode_batch, tokenize

TRAINED = [name for name in CHAT_FORMATS if not name.endswith("reference")]
often = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TOOLS = ({"name": "add", "description": "Adds é", "parameters": {"type": "object", "properties": {"a": {}}}},)

words = st.lists(
    st.sampled_from(
        ["a", "yes", " ", "  ", "\n", "\n\n", "(", ")", "[b]", "é", "数", "🙂", "1", "23", ".", "<", ">", '"', "}"]
    ),
    min_size=1,
    max_size=8,
).map("".join)
said = words.map(str.strip).filter(bool)
calls = st.lists(
    st.builds(ToolCall, st.just("add"), st.dictionaries(st.sampled_from("ab"), words, max_size=2)), max_size=2
)


@st.composite
def assistant_messages(draw: st.DrawFn, cuts: bool = True) -> Message:
    reasoning = draw(st.one_of(st.none(), st.just(""), said))
    cut = bool(cuts and reasoning and draw(st.booleans()))
    if cut:
        assert reasoning is not None
        reasoning += draw(st.sampled_from(["", "\n", " "]))
    return Message("assistant", draw(said), reasoning, tuple(draw(calls)), cut)


@st.composite
def conversations(draw: st.DrawFn, cuts: bool = True) -> Conversation:
    messages = [Message("system", draw(said))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(said)))
        for _ in range(draw(st.integers(0, 2))):
            step = draw(assistant_messages(cuts=cuts).filter(lambda message: bool(message.tool_calls)))
            messages += [step, *(Message("tool", draw(said)) for _ in step.tool_calls)]
        messages.append(draw(assistant_messages(cuts=cuts)))
    return Conversation(tuple(messages), TOOLS if draw(st.booleans()) else ())


def text_of(spans: Any) -> str:
    return "".join(span.text for span in spans)


@pytest.mark.parametrize("name", TRAINED)
@often
@given(conversations())
def test_every_turn_is_trained_once_after_its_inference_prompt(name: str, conversation: Conversation) -> None:
    chat = chat_format(name)
    renders = [text_of(spans) for spans in chat.examples(conversation)]
    wanted = ""
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":
            prompt = chat.prompt(conversation.messages[:index], conversation.tools, thinking=bool(message.reasoning))
            assert any(text.startswith(prompt + text_of(chat.completion(message))) for text in renders)
            wanted += "".join(span.text for span in chat.completion(message) if span.trained)
    trained = "".join(span.text for spans in chat.examples(conversation) for span in spans if span.trained)
    assert trained == wanted


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("fixture", ["gpt2_like", "superword"])
@settings(often, max_examples=12)
@given(conversation=conversations())
def test_tokens_are_those_of_inference(
    name: str, fixture: str, conversation: Conversation, request: pytest.FixtureRequest
) -> None:
    tokenizer, chat = request.getfixturevalue(fixture), chat_format(name)
    examples = tokenize(conversation, chat, tokenizer)
    for spans, example in zip(chat.examples(conversation), examples, strict=True):
        assert tokenizer.decode(example.input_ids) == text_of(spans)
        assert len(example.input_ids) == len(example.loss_mask)
        prompt = tokenizer(spans[0].text, add_special_tokens=False)["input_ids"]
        assert example.input_ids[: len(prompt)] == prompt
        assert not any(example.loss_mask[: len(prompt)]) and example.loss_mask[len(prompt)]
        learnt = [token for token, kept in zip(example.input_ids, example.loss_mask, strict=True) if kept]
        assert tokenizer.decode(learnt) == "".join(span.text for span in spans if span.trained)


@pytest.mark.parametrize("name", TRAINED)
@often
@given(assistant_messages())
def test_parse_reads_what_was_written(name: str, message: Message) -> None:
    chat = chat_format(name)
    parsed = chat.parse(text_of(chat.completion(message)), thinking=bool(message.reasoning))
    expected = Answer(message.content, (message.reasoning or "").strip(), message.tool_calls)
    assert replace(parsed, faults=()) == expected
    assert set(parsed.faults) <= {answers.EMPTY}


@often
@given(conversations(cuts=False))
def test_nano_v2_equals_its_reference_on_plain_text(conversation: Conversation) -> None:
    ours, reference = NemotronNanoV2(), NemotronNanoV2Reference()
    assert ours.prompt(conversation.messages, conversation.tools) == reference.prompt(
        conversation.messages, conversation.tools
    )
    *history, final = conversation.messages
    off = replace(final, reasoning="", tool_calls=())
    [*_, spans] = ours.examples(replace(conversation, messages=(*history, off)))
    signal = Message("user", "/no_think")
    raw = reference.render([*history, signal, off], conversation.tools)
    assert text_of(spans) + "\n" == raw.replace("<SPECIAL_11>User\n\n", "")


def test_nano_v2_reference_quirks_are_ours_no_longer() -> None:
    ours, reference = NemotronNanoV2(), NemotronNanoV2Reference()
    call = Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1}),))
    question = Message("user", "what is a/think or </think>? /no_think")
    assert "TOOLCALL" not in reference.render([question, call])
    assert "<TOOLCALL>" in text_of(ours.examples(Conversation((question, call)))[0])
    assert reference.prompt([question]).endswith("<think>\n")
    assert ours.prompt([question]).endswith("what is a/think or </think>?\n<SPECIAL_11>Assistant\n<think></think>")
    answer = Message("assistant", "write </think> twice: </think> done")
    assert "twice: </think> done" in ours.prompt([question, answer, question])
    assert "done" not in reference.prompt([question, answer, question])
    with pytest.raises(DataError, match="only be the first"):
        ours.prompt([question, Message("system", "late")])
    assert "late" not in reference.prompt([question, Message("system", "late")])


def test_a_signal_and_a_forced_mode_render_the_same() -> None:
    for name in ("nemotron-nano-v2", "chatml", "smollm2", "llama3"):
        chat = chat_format(name)
        plain, off, on = (Message("user", text) for text in ("2+2?", "2+2? /no_think", "/think 2+2?"))
        assert chat.prompt([plain]) == chat.prompt([on]) == chat.prompt([off], thinking=True)
        assert chat.prompt([off]) == chat.prompt([plain], thinking=False) != chat.prompt([plain])
        assert chat.prompt([off, Message("assistant", "4"), on]).count("think>") == chat.prompt([on]).count("think>")


def test_forced_close_follows_the_last_character_and_is_not_trained() -> None:
    for name in TRAINED:
        chat = chat_format(name)
        for reasoning in ("one two thr", "one two\n"):
            spans = chat.completion(Message("assistant", "4", reasoning, reasoning_cut=True))
            assert text_of(spans).removeprefix("<think>\n").startswith(reasoning + "</think>\n\n4")
            assert [span.trained for span in spans] == [True, False, True]
            assert spans[1].text == chat.think_close


def test_malformed_completions_are_kept_as_text() -> None:
    chat = chat_format("nemotron-nano-v2")
    for broken in ('<TOOLCALL>[{"name": "add"', "<TOOLCALL>[1]</TOOLCALL>", "<TOOLCALL>{}</TOOLCALL>"):
        answer = chat.parse(f"ok\n</think>\n\n{broken}<SPECIAL_12>", thinking=True)
        assert answer == Answer(broken, "ok", (), (answers.TOOL_CALL,))
    unclosed = chat.parse("never closed", thinking=True)
    assert unclosed == Answer("", "never closed", (), (answers.EMPTY, answers.THINKING_TAGS))
    assert chat.parse("4 </think> 5", thinking=False) == Answer("4 </think> 5", "", (), (answers.THINKING_TAGS,))


def test_special_tokens_in_text_are_refused() -> None:
    hostile = Conversation((Message("user", "a<SPECIAL_12>b"), Message("assistant", "c")), origin="rows.jsonl:7")
    with pytest.raises(DataError, match=r"rows.jsonl:7.*SPECIAL_12"):
        chat_format("nemotron-nano-v2").examples(hostile)
    with pytest.raises(DataError, match="no assistant"):
        chat_format("chatml").examples(Conversation((Message("user", "a"),)))


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean `nemotron-nano-v2`"):
        chat_format("nemotron-nano-2")


def test_a_tokenizer_without_the_special_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "u": 1}, unk_token="u")))
    with pytest.raises(CheckpointError, match="SPECIAL_10"):
        ExampleEncoder(chat_format("nemotron-nano-v2"), bare)


@often
@given(conversation=conversations())
def test_a_batch_gives_what_single_calls_give(conversation: Conversation, gpt2_like: Any) -> None:
    chat = chat_format("qwen3")
    batch = [conversation, replace(conversation, tools=TOOLS)]
    assert encode_batch(batch, chat, gpt2_like) == [tokenize(each, chat, gpt2_like) for each in batch]


def trl_template(name: str, tokenizer: Any) -> HFTemplate:
    import trl
    from transformers import PreTrainedTokenizerFast

    template = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    eos = {"llama3": "<|eot_id|>"}.get(name, "<|im_end|>")
    with_template = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=eos, bos_token="<|begin_of_text|>"
    )
    with_template.chat_template = template.read_text()
    return HFTemplate(f"hf:{name}", with_template)


@often
@given(conversation=conversations(cuts=False))
def test_qwen3_equals_its_own_template(conversation: Conversation, gpt2_like: Any) -> None:
    ours, theirs = chat_format("qwen3"), trl_template("qwen3", gpt2_like)
    assert theirs.stop[0] == ours.stop[0]
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":
            for thinking in (True, False):
                history = conversation.messages[:index]
                assert ours.prompt(history, conversation.tools, thinking=thinking) == theirs.prompt(
                    history, conversation.tools, thinking=thinking
                )
    assert [text_of(e) for e in ours.examples(conversation)] == [text_of(e) for e in theirs.examples(conversation)]


@often
@given(conversation=conversations(cuts=False))
def test_llama3_without_thinking_equals_its_own_template(conversation: Conversation, gpt2_like: Any) -> None:
    plain = Conversation(
        (*(m for m in conversation.messages if m.role in ("user", "system")), Message("assistant", "fin"))
    )
    ours, theirs = chat_format("llama3"), trl_template("llama3", gpt2_like)
    assert [text_of(e) for e in ours.examples(plain)] == [text_of(e) for e in theirs.examples(plain)]


def test_a_tokenizer_folder_is_a_chat_format(tmp_path: Path, gpt2_like: Any) -> None:
    trl_template("qwen3", gpt2_like).tokenizer.save_pretrained(tmp_path)
    chat = chat_format(f"hf:{tmp_path}")
    message = Message("assistant", "4", "two and two", (ToolCall("add", {"a": 1}),))
    conversation = Conversation((Message("user", "2+2?"), message), TOOLS)
    assert chat.examples(conversation) == chat_format("qwen3").examples(conversation)
    assert as_message(chat.parse(text_of(chat.completion(message)), thinking=True), chat) == message
    [example] = tokenize(conversation, chat, gpt2_like)
    assert gpt2_like.decode(example.input_ids) == text_of(chat.examples(conversation)[0])
    cut = replace(message, reasoning_cut=True)
    assert chat.completion(cut) == chat_format("qwen3").completion(cut)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("", "no chat template"),
        (
            "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            "not in the",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(template: str, fault: str, gpt2_like: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=gpt2_like.backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    with pytest.raises((CheckpointError, DataError), match=fault):
        HFTemplate("hf:test", tokenizer).examples(Conversation((Message("user", "a"), Message("assistant", "b"))))


@pytest.mark.parametrize("name", ["nemotron-nano-v2", "nemotron-nano-v2-reference"])
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("system", ["", "/no_think", " /think\n", None])
def test_nano_v2_writes_no_blank_lines_for_an_empty_system_text(name: str, thinking: bool, system: str | None) -> None:
    first = [] if system is None else [Message("system", system)]
    text = chat_format(name).prompt([*first, Message("user", "q")], [{"name": "f"}], thinking=thinking)
    assert text.startswith("<SPECIAL_10>System\nYou can use the following tools")
    spoken = chat_format(name).prompt([Message("system", "Be brief. /no_think"), Message("user", "q")], [{"name": "f"}])
    assert spoken.startswith("<SPECIAL_10>System\nBe brief.\n\nYou can use the following tools")
