"""Answers to judge: gold answers in many shapes, right and wrong ones, made from the tasks with a fixed seed."""

import copy
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def instruction_shapes(row: Mapping[str, Any], text: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """(shape, answer): a text as it is and disfigured, and for each of the row's instructions one that is meant to
    follow it and one that is meant to miss it by little."""
    yield "as it is", text
    shape = draw.choice(["lower", "upper", "no commas", "quoted", "bold first line", "one line", "halved", "empty"])
    yield shape, _disfigured(shape, text)
    whole = text
    for name, kwargs in zip(row["instruction_id_list"], row["kwargs"]):
        kept, missed = _towards(name, kwargs, whole, draw)
        yield f"towards {name}", kept
        yield f"just past {name}", missed
        whole = kept
    yield "towards all", whole


def _disfigured(shape: str, text: str) -> str:
    match shape:
        case "lower":
            return text.lower()
        case "upper":
            return text.upper()
        case "no commas":
            return text.replace(",", "")
        case "quoted":
            return f'"{text}"'
        case "bold first line":
            first, _, rest = text.partition("\n")
            return f"**{first}**\n{rest}"
        case "one line":
            return " ".join(text.split())
        case "halved":
            return text[: len(text) // 2]
    return "  \n"


def _towards(name: str, k: Mapping[str, Any], text: str, draw: random.Random) -> tuple[str, str]:
    """Two variants of a text: one that most likely follows the instruction, one that most likely just does not."""
    n = next((int(value) for key, value in k.items() if isinstance(value, int | float) and "nth" not in key), 1)
    words, paragraphs = text.split() or ["word"], [p for p in re.split(r"\n\s*\n", text) if p.strip()] or [text]
    fewer = k.get("relation", k.get("let_relation", k.get("capital_relation"))) == "less than"
    match name.partition(":")[2]:
        case "no_comma":
            return text.replace(",", ""), text.replace(",", "") + ", "
        case "number_highlighted_sections":
            return text + "".join(f"\n*part {i}*" for i in range(n)), text.replace("*", "") + "".join(
                f"\n*part {i}*" for i in range(n - 1)
            ) + " ** **"
        case "number_words":
            filled = (words * (n // len(words) + 1))[: n - 1 if fewer else n]
            return " ".join(filled), " ".join((words * (n // len(words) + 1))[: n if fewer else n - 1])
        case "number_sentences":
            made = [f"This is sentence {i} of Dr. Smith." for i in range(n + 1)]
            return " ".join(made[: n - 1 if fewer else n]), " ".join(made[: n if fewer else n - 1])
        case "number_paragraphs":
            many = [paragraphs[i % len(paragraphs)] for i in range(n + 1)]
            return "\n***\n".join(many[:n]), "\n\n***\n\n".join(many)
        case "nth_paragraph_first_word":
            parts = [f"Paragraph {i} is here." for i in range(n)]
            at = int(k["nth_paragraph"]) - 1
            parts[at] = f"{k['first_word'].capitalize()}, it begins."
            return "\n\n".join(parts), "\n\n".join(parts) + "\n\nOne more."
        case "number_placeholders":
            return text + "".join(f" [place {i}]" for i in range(n)), text + " [one" + "".join(" [x]" * (n - 1))
        case "postscript":
            return f"{text}\n\n{k['postscript_marker']} One more thing.", f"{text}\n\nPS One more thing."
        case "number_bullet_lists":
            return "My list:\n" + "\n".join(f"* point {i}" for i in range(n)), "My list:\n" + "\n".join(
                draw.choice(["- point", " * point", "• point", "** point"]) for _ in range(n)
            )
        case "constrained_response":
            return draw.choice(["My answer is yes.", "Well. My answer is maybe. So."]), "My answer is perhaps."
        case "multiple_sections":
            mark = k["section_spliter"]
            return "\n".join(f"{mark} {i + 1}\nText." for i in range(n)), "\n".join(
                f"{mark} {i + 1}" for i in range(n - 1)
            )
        case "json_format":
            value = json.dumps({"answer": text})
            return draw.choice([value, f"```json\n{value}\n```"]), f"```\n{value}"
        case "title":
            return f"<<A title>>\n{text}", f"<A title>\n{text} << >>"
        case "two_responses":
            return f"{text}\n******\nAnother one.", f"{text}\n******\n{text}"
        case "repeat_prompt":
            return f"{k['prompt_to_repeat']}\n{text}", f"I was asked: {k['prompt_to_repeat']}\n{text}"
        case "end_checker":
            return f"{text} {k['end_phrase']}", f"{text} {k['end_phrase']} Bye"
        case "quotation":
            return f'"{text.strip()}"', f'"{text.strip()}'
        case "capital_word_frequency":
            capital = " ".join(["LOUD"] * (n - 1 if fewer else n))
            return f"{text.lower()} {capital}", f"{text.lower()} {' '.join(['LOUD'] * (n if fewer else n - 1))}"
        case "english_capital":
            return text.upper(), text.upper() + "x"
        case "english_lowercase":
            return text.lower(), text.lower() + "X"
        case "existence":
            return f"{text} {' '.join(k['keywords'])}", f"{text} {' '.join(k['keywords'][1:])}"
        case "frequency":
            more = " ".join([k["keyword"]] * (n - 1 if fewer else n))
            return f"{text} {more}", f"{' '.join([k['keyword']] * (n if fewer else n - 1))}"
        case "forbidden_words":
            for word in k["forbidden_words"]:
                text = re.sub(word, "thing", text, flags=re.IGNORECASE)
            return text, f"{text} {draw.choice(k['forbidden_words']).upper()}s {k['forbidden_words'][0]}"
        case "letter_frequency":
            return text + k["letter"] * (0 if fewer else n), k["letter"].upper() * (n if fewer else n - 1) or "b"
        case "response_language":
            return FOREIGN.get(k["language"], text), f"{FOREIGN.get(k['language'], '')} {' '.join(words[:40])}"
    raise ValueError(name)


FOREIGN = {
    "de": "Das Wetter war gestern sehr schön, und wir sind mit den Kindern lange am See spazieren gegangen.",
    "fr": "Le temps était très beau hier et nous nous sommes promenés longtemps au bord du lac avec les enfants.",
    "es": "Ayer hizo muy buen tiempo y paseamos mucho rato por la orilla del lago con los niños.",
    "it": "Ieri il tempo era molto bello e abbiamo passeggiato a lungo lungo il lago con i bambini.",
    "pt": "Ontem o tempo estava muito bom e passeamos muito tempo na beira do lago com as crianças.",
    "ru": "Вчера была очень хорошая погода, и мы долго гуляли с детьми у озера.",
    "bg": "Вчера времето беше много хубаво и ние дълго се разхождахме край езерото с децата.",
    "fi": "Eilen sää oli todella kaunis, ja kävelimme pitkään järven rannalla lasten kanssa.",
    "sw": "Jana hali ya hewa ilikuwa nzuri sana na tulitembea kwa muda mrefu kando ya ziwa na watoto.",
    "vi": "Hôm qua thời tiết rất đẹp và chúng tôi đã đi dạo rất lâu bên hồ với bọn trẻ.",
    "ko": "어제는 날씨가 매우 좋아서 우리는 아이들과 함께 호수에서 오랫동안 산책했습니다.",
    "th": "เมื่อวานอากาศดีมาก เราเดินเล่นริมทะเลสาบกับเด็ก ๆ เป็นเวลานาน",
    "ar": "كان الطقس جميلا جدا بالأمس ومشينا طويلا على ضفاف البحيرة مع الأطفال.",
    "fa": "دیروز هوا خیلی خوب بود و ما مدت زیادی با بچه‌ها در کنار دریاچه قدم زدیم.",
    "ur": "کل موسم بہت اچھا تھا اور ہم بچوں کے ساتھ جھیل کے کنارے دیر تک ٹہلتے رہے۔",
    "hi": "कल मौसम बहुत अच्छा था और हम बच्चों के साथ झील के किनारे देर तक टहलते रहे।",
    "mr": "काल हवामान खूप छान होते आणि आम्ही मुलांसोबत तलावाच्या काठावर बराच वेळ फिरलो.",
    "ne": "हिजो मौसम धेरै राम्रो थियो र हामी केटाकेटीहरूसँग तालको किनारमा लामो समयसम्म हिँड्यौं।",
    "pa": "ਕੱਲ੍ਹ ਮੌਸਮ ਬਹੁਤ ਵਧੀਆ ਸੀ ਅਤੇ ਅਸੀਂ ਬੱਚਿਆਂ ਨਾਲ ਝੀਲ ਦੇ ਕੰਢੇ ਲੰਮਾ ਸਮਾਂ ਸੈਰ ਕੀਤੀ।",
    "gu": "ગઈકાલે હવામાન ખૂબ સરસ હતું અને અમે બાળકો સાથે તળાવના કિનારે લાંબો સમય ફર્યા.",
    "bn": "গতকাল আবহাওয়া খুব সুন্দর ছিল এবং আমরা বাচ্চাদের সাথে হ্রদের ধারে অনেকক্ষণ হেঁটেছি।",
    "te": "నిన్న వాతావరణం చాలా బాగుంది మరియు మేము పిల్లలతో సరస్సు ఒడ్డున చాలా సేపు నడిచాము.",
    "ta": "நேற்று வானிலை மிகவும் நன்றாக இருந்தது, நாங்கள் குழந்தைகளுடன் ஏரிக்கரையில் நீண்ட நேரம் நடந்தோம்.",
    "kn": "ನಿನ್ನೆ ಹವಾಮಾನ ತುಂಬಾ ಚೆನ್ನಾಗಿತ್ತು ಮತ್ತು ನಾವು ಮಕ್ಕಳೊಂದಿಗೆ ಕೆರೆಯ ದಡದಲ್ಲಿ ಬಹಳ ಹೊತ್ತು ನಡೆದೆವು.",
}
"""A sentence in each of IFEval's languages."""


def math_shapes(gold: str, wrong: Sequence[str], draw: random.Random) -> Iterator[tuple[str, str]]:
    """(shape, answer) with the gold answer, in another spelling of it, and with other problems' answers."""
    yield "boxed", f"So we find that $x+1$ works.\n\n\\[\\boxed{{{gold}}}\\]"
    yield "boxed in prose", f"Adding 3 and 4, the final answer is $\\boxed{{{gold}}}$."
    yield "answer in dollars", f"We get this in 2 steps.\n\nThe answer is ${gold}$."
    yield "final answer", f"Final Answer: The final answer is ${gold}$. I hope it is correct."
    yield "bold", f"**Answer:** ${gold}$"
    respelled = _respelled(gold)
    if respelled != gold:
        yield "respelled", f"Therefore \\boxed{{{respelled}}}"
    for other in wrong:
        yield "another's answer", f"Therefore the answer is $\\boxed{{{other}}}$."
    yield "corrected", f"So it is $\\boxed{{{wrong[0]}}}$. But that is wrong.\n\nThe answer is $\\boxed{{{gold}}}$."
    yield "changed", f"Therefore the answer is $\\boxed{{{_changed(gold, draw)}}}$."
    yield "no answer", "I do not know how to solve this problem."


def unusual_boxes(gold: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Three of the ways to write the same, or nearly the same, inside a box, on which scorers have conventions."""
    ways = {
        "full stop": f"{gold}.", "dollars": f"${gold}$", "named": f"x = {gold}", "braces": f"{{{gold}}}",
        "displaystyle": f"\\displaystyle {gold}", "space": f"{gold}\\,", "unit": f"{gold} \\text{{ units}}",
        "approximately": f"\\approx {gold}", "brackets": f"({gold})", "percent": f"{gold}\\%",
        "doubled": f"2 \\cdot {gold}",
    }  # fmt: skip
    if re.fullmatch(r"-?\d+", gold):
        ways |= {"decimal": f"{gold}.0", "fraction": f"\\frac{{{2 * int(gold)}}}{{2}}", "rounded": f"{gold}.1",
                 "sum": f"{int(gold) - 3} + 3"}  # fmt: skip
    if found := re.fullmatch(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", gold):
        over, under = int(found[1]), int(found[2])
        ways |= {"slash": f"{over}/{under}", "decimal": f"{over / under:.10g}", "rounded": f"{over / under:.2f}",
                 "unreduced": f"\\frac{{{3 * over}}}{{{3 * under}}}"}  # fmt: skip
    if "," in gold and not re.search(r"\d,\d{3}|\d\{,\}", gold):
        parts = gold.strip("()[]").split(",")
        ways |= {"reversed": ",".join(parts[::-1]), "bare": gold.strip("()[]"), "set": f"\\{{{gold}\\}}"}
    for shape, text in draw.sample(sorted(ways.items()), 3):
        yield shape, f"Therefore $\\boxed{{{text}}}$."
    yield "two boxes in a sentence", f"First \\boxed{{1}}, then corrected: \\boxed{{{gold}}}"


def _respelled(gold: str) -> str:
    text = re.sub(r"\\frac(?![a-zA-Z])", r"\\dfrac", gold)
    text = text.replace(r"\left", "").replace(r"\right", "").replace("\\!", "").replace(",", ", ")
    return re.sub(r"(?<=\d)(?=(\d{3})+$)", "{,}", text) if re.fullmatch(r"\d{5,}", text) else text


def _changed(gold: str, draw: random.Random) -> str:
    digits = [place for place, letter in enumerate(gold) if letter.isdigit()]
    if digits:
        place = draw.choice(digits)
        return gold[:place] + str((int(gold[place]) + draw.randint(1, 8)) % 10) + gold[place + 1 :]
    return f"-{gold}"


Call = tuple[str, dict[str, Any]]


def call_shapes(
    functions: Sequence[Mapping[str, Any]], possible: Sequence[Mapping[str, Any]], draw: random.Random
) -> Iterator[tuple[str, list[Call]]]:
    """(shape, calls): the possible answers, drawn, and what is a little off."""
    if not possible:
        yield "no call", []
        yield "a call", [(functions[0]["name"] if functions else "anything", {})]
        return
    for first in (True, False):
        yield "possible", [_drawn(each, draw, first) for each in possible]
    gold = [_drawn(each, draw, True) for each in possible]
    yield "reversed", gold[::-1]
    yield "no call", []
    yield "one more", [*gold, copy.deepcopy(gold[0])]
    yield "one less", gold[:-1]
    for shape in ("other name", "dropped", "added", "text", "case", "type", "value", "type", "value", "inner"):
        changed = copy.deepcopy(gold)
        place = draw.randrange(len(changed))
        changed[place] = _off(shape, changed[place], draw)
        yield shape, changed


def _drawn(answer: Mapping[str, Any], draw: random.Random, first: bool) -> Call:
    [(name, parameters)] = answer.items()
    arguments = {}
    for key, values in parameters.items():
        options = [value for value in values if value != ""]
        if options and (first or "" not in values or draw.random() < 0.5):
            arguments[key] = _plain_value(options[0] if first else draw.choice(options), draw, first)
    return name, arguments


def _plain_value(value: Any, draw: random.Random, first: bool) -> Any:
    """A possible value: of an object's keys, one of the values that each lists."""
    if isinstance(value, dict):
        return {
            key: _plain_value(options[0] if first else draw.choice(options), draw, first)
            for key, options in value.items()
            if isinstance(options, list) and options and (options[0] != "" or not first)
        }
    return [_plain_value(each, draw, first) for each in value] if isinstance(value, list) else value


def _off(shape: str, call: Call, draw: random.Random) -> Call:
    name, arguments = call
    if shape == "other name":
        return f"{name}_2", arguments
    if shape == "added":
        return name, {**arguments, "verbose": True}
    if not arguments:
        return name, arguments
    key = draw.choice(list(arguments))
    value = arguments.pop(key)
    if shape == "dropped":
        return name, arguments
    new: Any = value
    match shape, value:
        case "case", str():
            new = draw.choice([value.upper(), value.replace(" ", "_"), f" {value}.", value.replace("'", '"')])
        case "text", _:
            new = str(value)
        case "type", bool():
            new = int(value)
        case "type", int():
            new = draw.choice([float(value), str(value), [value], bool(value)])
        case "type", float():
            new = draw.choice([int(value), str(value)])
        case "type", list():
            new = draw.choice([{"items": value}, str(value), [[each] for each in value], [str(x) for x in value]])
        case "type", str():
            new = draw.choice([[value], None, len(value)])
        case "value", bool():
            new = not value
        case "value", int() | float():
            new = draw.choice([value + 1, -value, value * 1.0])
        case "value", list():
            new = draw.choice([value[::-1], value[:-1], [*value, *value[:1]], []])
        case "value", str():
            new = draw.choice([f"{value} x", value[:-1], value.swapcase()])
        case "inner" | "value" | "type", dict():
            new = {**value, "more": 1} if draw.random() < 0.5 else dict(list(value.items())[1:])
        case "inner", list():
            new = [each.upper() if isinstance(each, str) else float(each) if type(each) is int else each
                   for each in value]  # fmt: skip
    return name, {**arguments, key: new}
