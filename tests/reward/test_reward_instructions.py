import json
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.conversation import Answer, Conversation, Message
from nanoalign.reward import Sample
from nanoalign.reward.instructions import CHECKERS, augment, follows, score_instructions
from nanoalign.reward.instructions.augment import KINDS
from nanoalign.reward.instructions.language import detect, english
from nanoalign.reward.instructions.text import capital_words, count_words, own_words, sentences

DATA = Path(os.environ.get("NANOALIGN_DATA", Path(__file__).parents[3] / "shared" / "data"))

CASES = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A Cat and a dog.", "A cat."),
    ("keywords:frequency", {"keyword": "ha", "relation": "at least", "frequency": 3}, "Ha ha ha", "ha ha"),
    ("keywords:frequency", {"keyword": "ha", "relation": "less than", "frequency": 3}, "ha ha", "ha ha ha"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "A rocky road.", "A Rock."),
    ("keywords:letter_frequency", {"letter": "Z", "let_relation": "at least", "let_frequency": 2}, "zZ", "z"),
    ("language:response_language", {"language": "de"}, "Das ist nicht der Weg.", "This is not the way."),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "One. Two.", "One, e.g. it."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "Two words", "Now three words"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***\n", "a\n***\n***\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Once"},
        "Hi.\n\n\"once, upon\"",
        "Hi.\n\nTwice.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a] and (b)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\nP. S. Bye", "Hi.\nPS Bye"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Hi.\nP.P.S Bye", "Hi.\nP.S. Bye"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b\n* c\n* d"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "my answer is no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b c*", "*a* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1 a Section 2 b",
        "Section one, Section 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<Song>>\nla", "<< >>\nla"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, "say hi. hi", "hi"),
    ("startend:end_checker", {"end_phrase": "The end."}, '"So: the END."', "The end. Or not"),
    ("startend:quotation", {}, ' "quoted" ', '"'),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "A-B CD", "AB c"),
    ("change_case:english_capital", {}, "THIS IS IT.", "THIS Is IT."),
    ("change_case:english_lowercase", {}, "this is it.", "das ist nicht der weg"),
    ("punctuation:no_comma", {}, "no comma", "a, comma"),
]  # fmt: skip


@pytest.mark.parametrize(("id", "kwargs", "good", "bad"), CASES)
def test_each_type(id: str, kwargs: dict, good: str, bad: str) -> None:
    assert follows(good, id, kwargs)
    assert not follows(bad, id, kwargs)
    assert not follows("", id, kwargs) and not follows(" \n", id, kwargs)


def test_all_25_types_have_a_case() -> None:
    assert len(CHECKERS) == 25
    assert {id for id, *_ in CASES} == set(CHECKERS) == set(KINDS)


@pytest.mark.parametrize(
    ("id", "kwargs", "text"),
    [
        ("detectable_format:json_format", {}, 'Sure:\n{"a": 1}'),
        ("startend:quotation", {}, 'Sure:\n"so"\nBye.'),
        ("startend:end_checker", {"end_phrase": "The end."}, "Yes. **The end.**"),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "Here you go:\nSay hi."),
    ],
)
def test_loose_forgives_an_outer_line_or_asterisks(id: str, kwargs: dict, text: str) -> None:
    assert not follows(text, id, kwargs)
    assert follows(text, id, kwargs, loose=True)


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(CASES))
def test_no_text_breaks_a_checker_and_strict_implies_loose(text: str, case: tuple) -> None:
    id, kwargs, *_ = case
    assert follows(text, id, kwargs, loose=True) >= follows(text, id, kwargs)


REPEATED = [
    "[", "]", "(", "{", "<<", "<<a", "<", ">>", '"', "'", "`", "```", "*", "**", "* ", "\n* ", "\n- ", "\n", " \n", " ",
    "\r", "\u2028", "<answer>", "<think>", "P.S.", "p. ", "A. ", "1. ", ".", "! ", "9", "a", "a ", "Aa-", "Section ",
    "******", '"[', "\u0301\u0327", "中。",
]  # fmt: skip


@pytest.mark.parametrize("part", REPEATED)
def test_every_check_is_linear_in_the_answer(part: str) -> None:
    """All types at once: eight times the text may take 24 times as long before it counts as worse than linear, and
    half a second whatever the ratio. Before, the worst of these took 20 s and more."""
    instructions = [{"id": id, "kwargs": kwargs} for id, kwargs, *_ in CASES]

    def seconds(length: int) -> float:
        answer = Answer((part * length)[:length])
        sample = Sample((Message("user", "Do so, please."),), answer, {"instructions": instructions})
        start = time.process_time()
        assert 0.0 <= score_instructions(sample, share=True, loose=True) <= 1.0
        return time.process_time() - start

    long = seconds(32_000)
    assert long < 0.5 or min(long, seconds(32_000)) < max(0.5, 24 * min(seconds(4_000) for _ in range(2)))


@pytest.mark.parametrize("text", ['"' + "[" * 30_000 + '"', "[" * 400 + "]" * 400, '["' + "(" * 30_000 + '"]'])
def test_json_without_a_word_is_not_filled_and_is_found_so_at_once(text: str) -> None:
    assert follows(text, "detectable_format:json_format", {})
    instructions = [{"id": "detectable_format:json_format", "kwargs": {}}]
    assert score_instructions(Sample((), Answer(text), {"instructions": instructions}), share=True) == 0.0


@pytest.mark.parametrize(
    ("id", "kwargs", "text", "right"),
    [
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a [b] c] [d\n] [[]", True),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[a\n] ] [", False),
        ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "\n\n \n\t* a\n\n- b\r\n  -", True),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*\n* a", True),
        ("detectable_format:title", {}, "<<>>\n<<<a>>>", True),
        ("detectable_format:title", {}, "<<a\n>> <<>>", False),
        ("detectable_format:title", {}, ">> a <<", False),
    ],
)
def test_signs_without_their_partner(id: str, kwargs: dict, text: str, right: bool) -> None:
    assert follows(text, id, kwargs) is right


def test_wrong_instructions_are_named() -> None:
    with pytest.raises(DataError, match="keywords:existance"):
        follows("a", "keywords:existance", {})
    with pytest.raises(DataError, match="num_words"):
        follows("a", "length_constraints:number_words", {"relation": "at least"})
    with pytest.raises(DataError, match="at most"):
        follows("a", "length_constraints:number_words", {"relation": "at most", "num_words": 3})


@pytest.mark.skipif(not (DATA / "ifeval").is_dir(), reason=f"no IFEval data under {DATA}")
def test_every_public_prompt_is_understood() -> None:
    rows = [json.loads(line) for line in (DATA / "ifeval" / "input_data.jsonl").open(encoding="utf-8")]
    pairs = [pair for row in rows for pair in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    assert len(rows) == 541 and {id for id, _ in pairs} == set(CHECKERS)
    for id, kwargs in pairs:
        assert not follows("", id, kwargs | {"unused": None})


def test_sentences_and_words() -> None:
    text = 'Dr. A. Smith met Mr. Jones at 3.5 km, e.g. in the U.S. in May. "Did he?" Yes!\n1. First item. 2. Second…'
    assert sentences(text) == [
        "Dr. A. Smith met Mr. Jones at 3.5 km, e.g. in the U.S. in May.",
        '"Did he?"',
        "Yes!",
        "1. First item.",
        "2. Second…",
    ]
    assert sentences("これはペンです。あれは本です。") == ["これはペンです。", "あれは本です。"]
    assert sentences("") == []
    assert count_words("It's two-fold, 3.5") == 6
    assert capital_words("NASA and the UK-EU deal: I AM") == 4


@settings(deadline=None)
@given(st.text(max_size=300))
def test_sentences_keep_every_letter(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "It was the best of times, and it was the worst of times."),
        ("en", "THIS IS WRITTEN IN CAPITALS AND IT IS STILL ENGLISH."),
        ("de", "Ich weiß nicht, was das bedeuten soll, aber es ist schön."),
        ("fr", "Je ne sais pas ce que cela veut dire, mais c'est très beau."),
        ("es", "No sé lo que quiere decir, pero es muy bonito y me gusta."),
        ("pt", "Não sei o que isso quer dizer, mas é muito bonito."),
        ("it", "Non so che cosa vuol dire, ma è molto bello e mi piace."),
        ("fi", "En tiedä mitä se tarkoittaa, mutta se on hyvin kaunis ja niin."),
        ("sw", "Sijui maana yake, lakini ni nzuri sana kwa watu wa nchi hii."),
        ("vi", "Tôi không biết điều đó có nghĩa là gì, nhưng nó rất đẹp."),
        ("hi", "मुझे नहीं पता कि इसका क्या मतलब है, लेकिन यह बहुत सुंदर है।"),
        ("mr", "मला माहित नाही याचा अर्थ काय आहे, पण ते खूप सुंदर आहे."),
        ("ne", "मलाई थाहा छैन यसको अर्थ के हो, तर यो धेरै सुन्दर छ।"),
        ("ar", "لا أعرف ماذا يعني هذا، لكنه جميل جدا في كل مكان."),
        ("fa", "نمی دانم این به چه معنی است، اما بسیار زیبا است و خوب بود."),
        ("ur", "مجھے نہیں معلوم کہ اس کا کیا مطلب ہے لیکن یہ بہت خوبصورت ہے۔"),
        ("ru", "Я не знаю, что это значит, но это очень красиво."),
        ("bg", "Не знам какво означава това, но е много красиво и ще се видим."),
        ("ko", "무슨 뜻인지 모르겠지만 아주 아름답습니다."),
        ("ja", "意味は分かりませんが、とても美しいです。"),
        ("zh", "我不知道这是什么意思，但是很美。"),
        ("th", "ฉันไม่รู้ว่ามันหมายความว่าอะไร"),
        ("kn", "ಇದರ ಅರ್ಥ ಏನು ಎಂದು ನನಗೆ ಗೊತ್ತಿಲ್ಲ"),
        ("te", "దీని అర్థం ఏమిటో నాకు తెలియదు"),
        ("ta", "இதன் பொருள் என்னவென்று எனக்குத் தெரியாது"),
        ("gu", "મને ખબર નથી કે આનો અર્થ શું છે"),
        ("pa", "ਮੈਨੂੰ ਨਹੀਂ ਪਤਾ ਕਿ ਇਸਦਾ ਕੀ ਮਤਲਬ ਹੈ"),
        ("bn", "আমি জানি না এর মানে কি"),
        (None, "12345 !!"),
        (None, ""),
    ],
)
def test_languages(language: str | None, text: str) -> None:
    assert detect(text) == language


@pytest.mark.parametrize(
    "text",
    ["how about a walk?", "i like tea.", "go on, take a nap.", "bake a cake", "invite a friend to dinner.", "true.",
     "i think php", "no problem at all.", "a good idea is to paint", "sushi", "42", ""],
)  # fmt: skip
def test_short_english_passes_in_either_case(text: str) -> None:
    assert english(text) and english(text.upper())
    if any(letter.isalpha() for letter in text):
        assert follows(text.lower(), "change_case:english_lowercase", {})
        assert follows(text.upper(), "change_case:english_capital", {})


@pytest.mark.parametrize(
    "text",
    ["das ist nicht der weg", "ich mag tee und brot", "je ne sais pas", "la vita è bella e lunga", "это не так",
     "no sé lo que quiere decir, pero es muy bonito"],
)  # fmt: skip
def test_other_languages_do_not_pass_for_english(text: str) -> None:
    assert not english(text) and not english(text.upper())
    assert not follows(text, "change_case:english_lowercase", {})


@pytest.mark.skipif(not (DATA / "ifeval").is_dir(), reason="no mirrored IFEval here")
def test_the_benchmarks_own_prompts_are_english_as_langdetect_finds() -> None:
    for line in (DATA / "ifeval" / "input_data.jsonl").open(encoding="utf-8"):
        assert english(json.loads(line)["prompt"].lower()), line


def test_own_words_leave_out_quotes_and_repetitions() -> None:
    prompt = "Write about spring. Your answer must contain the words river, garden."
    answer = "Your answer must contain the words river, garden. Spring is here. Spring is here.\n\n* a\n* a"
    assert own_words(answer, prompt) == "Spring is here.\n\n* a\n"


WORDS = ("maple", "copper", "planet", "cloud", "valley", "basket", "feather", "castle", "magnet", "ladder")
FILLERS = {
    "en": "This is the {word} of point {n} and it is for you.",
    "de": "Das ist nicht der Punkt {n} und auch nicht die Nummer {n}.",
    "fr": "Ce n'est pas le point {n} mais il est dans la liste avec nous.",
    "es": "Este es el punto {n} de la lista y no hay una más.",
    "it": "Questo è il punto {n} della lista e non ci sono delle altre.",
    "pt": "Este é o ponto {n} da lista e não é mais uma coisa.",
    "fi": "Tämä on kohta {n} ja se ei ole hyvin pitkä mutta niin.",
}


def obedient(instructions: list[dict]) -> str:
    """An answer that follows all the instructions at once, written mechanically: they do not contradict each other."""
    asked = {item["id"].split(":")[1]: item["kwargs"] for item in instructions}
    if "json_format" in asked:
        return '{"answer": "This is it."}'
    if "constrained_response" in asked:
        parts = ["My answer is yes."]
    elif "two_responses" in asked:
        return "This is the one. [a] [b] [c] [d]\n<<Title>>\n" + _dress(asked) + "\n******\nThis is the other."
    else:
        filler = FILLERS[asked.get("response_language", {}).get("language", "en")]
        count = 1
        sentence_rule, word_rule = asked.get("number_sentences", {}), asked.get("number_words", {})
        if sentence_rule.get("relation") == "at least":
            count = sentence_rule["num_sentences"]
        if word_rule.get("relation") == "at least":
            count = word_rule["num_words"]
        paragraphs = asked.get("number_paragraphs") or asked.get("nth_paragraph_first_word") or {"num_paragraphs": 1}
        count = max(count, paragraphs["num_paragraphs"])
        parts = [filler.format(word=WORDS[n % 10], n=n) for n in range(count)]
    if rule := asked.get("nth_paragraph_first_word"):
        parts[rule["nth_paragraph"] - 1] = f"{rule['first_word']} first. {parts[rule['nth_paragraph'] - 1]}"
    parts[-1] += " " + _dress(asked)
    divider = "\n\n" if "nth_paragraph_first_word" in asked else "\n***\n" if "number_paragraphs" in asked else " "
    text = divider.join(parts)
    for n in range(asked.get("number_bullet_lists", {}).get("num_bullets", 0)):
        text += f"\n* a {WORDS[n]} item"
    if "title" in asked:
        text += "\n<<Title>>"
    if "repeat_prompt" in asked:
        text = asked["repeat_prompt"]["prompt_to_repeat"] + "\n" + text
    if "postscript" in asked:
        text += f"\n{asked['postscript']['postscript_marker']} more"
    if "end_checker" in asked:
        text += "\n" + asked["end_checker"]["end_phrase"]
    if "quotation" in asked:
        text = f'"{text}"'
    if "english_capital" in asked:
        text = text.upper()
    return text.lower() if "english_lowercase" in asked else text


def _dress(asked: dict) -> str:
    """What can stand anywhere."""
    words = list(asked.get("existence", {}).get("keywords", []))
    if rule := asked.get("frequency"):
        words += [f"{rule['keyword']} {WORDS[n]}" for n in range(rule["frequency"])]
    if rule := asked.get("letter_frequency"):
        words += [rule["letter"] + WORDS[n] for n in range(rule["let_frequency"])]
    words += [f"[{word}]" for word in WORDS[: asked.get("number_placeholders", {}).get("num_placeholders", 0)]]
    words += [f"*{word}*" for word in WORDS[: asked.get("number_highlighted_sections", {}).get("num_highlights", 0)]]
    if rule := asked.get("capital_word_frequency"):
        words += [word.upper() for word in WORDS[: rule["capital_frequency"]]]
    if rule := asked.get("multiple_sections"):
        words += [f"{rule['section_spliter']} {n + 1} {WORDS[n]}" for n in range(rule["num_sections"])]
    return " ".join(words)


@settings(deadline=None, max_examples=400)
@given(st.integers(0, 10**9))
def test_augmented_instructions_never_contradict_each_other(seed: int) -> None:
    prompt = Conversation(
        (Message("user", "Tell me about rivers, please."), Message("assistant", "A river flows.")), domain="chat"
    )
    result = augment(prompt, random.Random(seed))
    assert result == augment(prompt, random.Random(seed))
    assert [message.role for message in result.messages] == ["user"]
    assert result.messages[0].content.startswith("Tell me about rivers, please.")
    assert result.task is not None and result.domain == "instruction"
    instructions = result.task["instructions"]
    assert 1 <= len(instructions) <= 3 and json.loads(json.dumps(instructions)) == instructions
    answer = obedient(instructions)
    missed = [item for item in instructions if not follows(answer, item["id"], item["kwargs"])]
    assert not missed, answer
    sample = Sample(result.messages, Answer(answer), result.task)
    assert score_instructions(sample, share=False) == 1.0, answer


def test_augment_reaches_all_types_and_refuses_what_it_cannot_do() -> None:
    prompt = Conversation((Message("user", "Hello."),))
    seen = set()
    for seed in range(400):
        task = augment(prompt, random.Random(seed)).task
        assert task is not None
        seen |= {item["id"] for item in task["instructions"]}
    assert seen == set(CHECKERS)
    only = augment(prompt, random.Random(0), ids=["punctuation:no_comma"], most=3)
    assert only.task is not None and len(only.task["instructions"]) == 1
    with pytest.raises(ConfigError, match="no_such"):
        augment(prompt, random.Random(0), ids=["no_such"])
    with pytest.raises(ConfigError, match="user"):
        augment(Conversation((Message("system", "Hi."),)), random.Random(0))
