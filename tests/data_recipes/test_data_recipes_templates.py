"""Tokenizers' own templates, as `hf:`: those that TRL brings, and small ones that behave like SmolLM3's and others."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import CheckpointError, ConfigError, DataError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.chat.answers import as_message
from nanoalign.data_recipes.chat.gaps import gaps
from nanoalign.data_recipes.chat.template import HFTemplate
from nanoalign.data_recipes.conversation import Conversation, Message, ToolCall
from nanoalign.plan_chat import template_notes
from nanoalign.recipe.load import load

SMOLLM3_LIKE = """\
{%- set mode = "off" if enable_thinking is defined and not enable_thinking else "on" -%}
{%- set rules = "" -%}
{%- if messages[0].role == "system" -%}{%- set rules = messages[0].content -%}{%- endif -%}
{%- if "/no_think" in rules -%}{%- set mode = "off" -%}
{%- elif "/think" in rules -%}{%- set mode = "on" -%}{%- endif -%}
<|im_start|>system
Today: {{ strftime_now("%d %B %Y") }}
Mode: {{ mode }}
{{ rules.replace("/no_think", "").replace("/think", "").strip() }}
{%- if tools %}

<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}<|im_end|>
{% for message in messages %}
{%- if message.role == "user" %}<|im_start|>user
{{ message.content }}<|im_end|>
{% elif message.role == "assistant" %}<|im_start|>assistant
{% if mode == "off" %}<think>

</think>
{% endif %}{{ message.content.lstrip("\\n") }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if mode == "off" %}<think>

</think>
{% endif %}{% endif %}"""
"""Thinking is text; the mode is in the system message and, off, an empty block before every answer."""

KEEPS_ALL = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == "assistant" %}[THINK]{{ m.reasoning_content or "" }}[/THINK]{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
[THINK]{% if enable_thinking is defined and not enable_thinking %}[/THINK]{% endif %}{% endif %}"""
"""Tags of another kind, and earlier thinking stays."""

STRICT = """\
{% for m in messages %}{% if m.role == "system" %}{{ raise_exception("no system role here") }}{% endif %}\
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

EOS = {"llama3_1": "<|eot_id|>", "deepseek_r1_distill": "<｜end▁of▁sentence｜>"}
OWN = {"smollm3-like": SMOLLM3_LIKE, "keeps-all": KEEPS_ALL, "strict": STRICT}
TRL = ("qwen3", "qwen3_6", "nemotron_3_nano", "deepseek_r1_distill", "llama3_1", "qwen2_5")
TOOLS = ({"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {"a": {}}}},)
CALL = ToolCall("add", {"a": 1, "b": "two"})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, gpt2_like: Any) -> Any:
    """The folder of a tokenizer with the template of that name."""
    import trl
    from transformers import PreTrainedTokenizerFast

    made = tmp_path_factory.mktemp("tokenizers")

    def of(name: str) -> Path:
        if not (made / name).exists():
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=gpt2_like.backend_tokenizer, eos_token=EOS.get(name, "<|im_end|>"), bos_token="<s>"
            )
            shipped = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
            tokenizer.chat_template = OWN[name] if name in OWN else shipped.read_text()
            tokenizer.save_pretrained(made / name)
        return made / name

    return of


@pytest.fixture
def chat_of(folder: Any) -> Any:
    return lambda name: chat_format(f"hf:{folder(name)}")


@pytest.mark.parametrize(
    ("name", "reads", "opens", "tags"),
    [
        ("qwen3", True, False, "<think>"),
        ("qwen3_6", True, True, "<think>"),
        ("nemotron_3_nano", True, True, "<think>"),
        ("deepseek_r1_distill", False, True, "<think>"),
        ("llama3_1", False, False, "<think>"),
        ("smollm3-like", False, False, "<think>"),
        ("keeps-all", True, True, "[THINK]"),
    ],
)
def test_what_a_template_does_with_thinking_is_found_out(
    chat_of: Any, name: str, reads: bool, opens: bool, tags: str
) -> None:
    chat = chat_of(name)
    assert (chat.reads_reasoning, chat.prompt_opens_thinking, chat.think_open) == (reads, opens, tags)
    assert chat.stop[0] == EOS.get(name, "<|im_end|>")


words = st.text("ab 1.é\n<", min_size=1, max_size=8).map(str.strip).filter(bool)
turns = st.lists(st.tuples(words, words, st.none() | words), min_size=1, max_size=3)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "nemotron_3_nano", "llama3_1", "smollm3-like", "keeps-all"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=turns)
def test_what_is_trained_is_what_inference_renders_for_every_prefix(chat_of: Any, name: str, turns: Any) -> None:
    chat = chat_of(name)
    messages = []
    for asked, answered, thought in turns:
        messages += [Message("user", asked), Message("assistant", answered, thought)]
    conversation = Conversation(tuple(messages))
    texts = ["".join(span.text for span in spans) for spans in chat.examples(conversation)]
    trained = ["".join(span.text for span in spans if span.trained) for spans in chat.examples(conversation)]
    for end, message in enumerate(messages):
        if message.role == "assistant":
            completion = "".join(span.text for span in chat._turn(messages[:end], (), message))
            prompt = chat.prompt(messages[:end], thinking=message.thinks)
            assert any(text.startswith(prompt + completion) for text in texts)
            assert any(completion in each for each in trained)
            read = chat.parse(completion, thinking=message.thinks)
            assert (read.content, read.reasoning) == (message.content, message.reasoning or "")


def test_deepseeks_thinking_is_put_between_prompt_and_answer(chat_of: Any) -> None:
    chat = chat_of("deepseek_r1_distill")
    asked = (Message("user", "2+2?"), Message("assistant", "4", "two and two"))
    [spans] = chat.examples(Conversation(asked))
    assert spans[0].text.endswith("<think>\n") and spans[1].text == "two and two\n</think>\n\n4<｜end▁of▁sentence｜>"
    with pytest.raises(DataError, match="thinking off"):
        chat.completion(Message("assistant", "4"))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "nemotron_3_nano", "llama3_1", "qwen2_5", "smollm3-like"])
def test_calls_are_read_back_as_the_template_writes_them(chat_of: Any, name: str) -> None:
    chat = chat_of(name)
    called = Message("assistant", "", "", (CALL,))
    turn = "".join(span.text for span in chat._turn([Message("user", "q")], TOOLS, called))
    assert as_message(chat.parse(turn, thinking=False), chat).tool_calls == (CALL,)


@pytest.mark.parametrize(
    "text",
    [
        "<function=add",
        "<function=add></function> more",
        "<function=></function>",
        "<function=add>text</function>",
        "<function=add><parameter=a>1</parameter><parameter=a>2</parameter></function>",
        "<function=add><parameter>1</parameter></function>",
    ],
)
def test_broken_function_calls_are_faults(chat_of: Any, text: str) -> None:
    read = chat_of("qwen3_6").parse(f"<tool_call>\n{text}\n</tool_call>", thinking=False)
    assert read.tool_calls == () and "made a tool call that cannot be read" in read.faults


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("qwen3", ["earlier thinking is left out of the history"]),
        ("qwen3_6", ["earlier thinking is left out of the history"]),
        ("llama3_1", ["no switch for thinking", "`reasoning_content` is not read"]),
        (
            "deepseek_r1_distill",
            ["answers without thinking", "no switch", "`reasoning_content`", "tools are not shown"],
        ),
        ("smollm3-like", ["`reasoning_content` is not read", "today's date"]),
        ("keeps-all", ["tools are not shown"]),
        ("strict", ["no switch", "`reasoning_content`", "no system message", "tools are not shown"]),
    ],
)
def test_gaps_are_named(chat_of: Any, name: str, named: list[str]) -> None:
    found = gaps(chat_of(name))
    assert len(found) == len(named) and all(gap.startswith(part) for gap, part in zip(found, named, strict=True)), found


def test_what_a_template_refuses_is_an_error_with_its_words(chat_of: Any) -> None:
    asked = (Message("system", "s"), Message("user", "q"), Message("assistant", "a"))
    with pytest.raises(DataError, match="the template refuses the conversation: no system role here"):
        chat_of("strict").examples(Conversation(asked))


def test_a_cut_reasoning_is_closed_as_our_own_format_closes_it(chat_of: Any) -> None:
    cut = Message("assistant", "4", "two and\n", reasoning_cut=True)
    assert chat_of("qwen3").completion(cut) == chat_format("qwen3").completion(cut)
    spans = chat_of("smollm3-like").completion(cut)
    assert [(span.text, span.trained) for span in spans] == [
        ("<think>\ntwo and\n", True), ("</think>", False), ("\n\n4<|im_end|>", True),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*TRL, "smollm3-like", "keeps-all"])
def test_a_folder_is_read_as_transformers_reads_it(folder: Any, name: str) -> None:
    from transformers import AutoTokenizer

    ours = HFTemplate.load(f"hf:{folder(name)}")
    theirs = HFTemplate("hf:theirs", AutoTokenizer.from_pretrained(folder(name)))
    asked = [Message("user", "q"), Message("assistant", "a", "t"), Message("user", "é\n")]
    for tools in ((), TOOLS):
        for mode in (True, False):
            assert ours.prompt(asked, tools, thinking=mode) == theirs.prompt(asked, tools, thinking=mode)
    assert ours.template() == theirs.template() and ours.stop == theirs.stop
    assert set(theirs.special_tokens) <= set(ours.special_tokens)


def test_a_template_for_tools_beside_the_default_one(tmp_path: Path, gpt2_like: Any) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=gpt2_like.backend_tokenizer, eos_token="<|im_end|>")
    tools = KEEPS_ALL.replace("[THINK]", "{{ tools | length }}[THINK]")
    tokenizer.chat_template = {"default": KEEPS_ALL, "tool_use": tools}
    tokenizer.save_pretrained(tmp_path)
    chat, theirs = chat_format(f"hf:{tmp_path}"), AutoTokenizer.from_pretrained(tmp_path)
    for listed in ((), TOOLS):
        wrapped = [{"type": "function", "function": tool} for tool in listed] or None
        text = theirs.apply_chat_template(
            [{"role": "user", "content": "q"}], tools=wrapped, tokenize=False, add_generation_prompt=True
        )
        assert chat.prompt([Message("user", "q")], listed) == text


def recipe(chat: Path | str, *more: str) -> Any:
    return load("miniature", [f"chat=hf:{chat}", *more], note=lambda _: None)


def test_the_plan_names_the_gaps_and_refuses_what_cannot_be_trained(folder: Any, tmp_path: Path) -> None:
    [gap, date] = template_notes(recipe(folder("smollm3-like")))
    assert gap.startswith(f"chat: hf:{folder('smollm3-like')}: `reasoning_content`") and "date" in date
    with pytest.raises(ConfigError, match=r"stages.foundation.strip_reasoning: .* cannot be trained"):
        template_notes(recipe(folder("deepseek_r1_distill")))
    assert "not on this machine" in template_notes(recipe("someone/something"))[0]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(CheckpointError, match="no chat template"):
        template_notes(recipe(tmp_path))


def test_the_plan_renders_without_torch(folder: Any) -> None:
    code = (
        "import sys\nfrom nanoalign.cli import main\n"
        f"sys.argv = ['nanoalign', 'plan', 'miniature', '--set', 'chat=hf:{folder('qwen3')}']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\nsys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "NOTE: chat: hf:" in result.stdout and "earlier thinking" in result.stdout


def test_a_row_that_the_template_cannot_render_stops_the_plan(folder: Any, tmp_path: Path) -> None:
    from nanoalign.data_recipes.config import Mixture
    from nanoalign.plan_data import plan_mixture

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, '
                    '{"role": "assistant", "content": "a"}]}\n')  # fmt: skip
    mixture = Mixture.model_validate({"sources": {f"file:{rows}": 1}})
    with pytest.raises(DataError, match="no system role here"):
        plan_mixture("all", mixture, f"hf:{folder('strict')}", None, None)
