"""Small talk, refusals, preference pairs and constrained writing of the miniature's world.

Style is what preference is about here: a good reply opens politely, stays on the topic and offers more. The SFT data
holds all styles, so that there is something for RLHF to move; constrained writing follows each constraint only with
probability :data:`CARE`, as chat data that was never written for constraints does, so that there is something for
GRPO to raise.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

from nanoalign.data_recipes.conversation import Conversation, Message
from nanoalign.data_recipes.miniature.problems import NAMES

CARE = 0.75
"""Probability that the writer of the SFT data obeys a constraint."""

TOPICS: dict[str, tuple[str, ...]] = {
    "dinner": (
        "a warm soup with bread",
        "rice with beans",
        "a fresh salad",
        "pasta with tomatoes",
        "fish with potatoes",
    ),
    "music": ("a calm piano song", "some old jazz", "a loud rock band", "a choir at church", "a street drummer"),
    "travel": (
        "a trip to the sea",
        "a walk in the hills",
        "a night train north",
        "a boat on the river",
        "a small old town",
    ),
    "books": (
        "a short crime story",
        "a book of poems",
        "a tale about the moon",
        "a life of a painter",
        "a guide to birds",
    ),
    "sports": (
        "a run in the park",
        "a game of chess",
        "a swim in the lake",
        "a bike ride home",
        "a match with friends",
    ),
    "garden": (
        "red roses by the wall",
        "herbs in a pot",
        "a young apple tree",
        "carrots in a row",
        "a pond with frogs",
    ),
    "gifts": ("a box of tea", "a warm scarf", "a card made by hand", "a game for two", "a lamp for the desk"),
    "weekend": (
        "a visit to the market",
        "a long sleep",
        "a film with popcorn",
        "a call to an old friend",
        "a cake for Sunday",
    ),
}
ASKS = (
    "Give me an idea for {}.",
    "What do you suggest for {}?",
    "I need help with {}.",
    "Tell me something about {}.",
    "Any thoughts on {}?",
    "Can you help me with {}?",
)
GREETINGS = ("", "Hi! ", "Hello. ", "Good morning. ", "This is {}. ", "{} here. ")
OPENERS = ("Sure!", "Of course!", "Happy to help!", "Gladly!")
BODIES = ("How about {}?", "You could try {}.", "I would pick {}.", "I like {}.", "Think of {}.")
CLOSINGS = ("Would you like more ideas?", "Shall I tell you more?", "I hope this helps!", "Let me know what you think!")
CURT = ("No idea.", "Look it up.", "Ask someone else.", "Why do you ask?", "Whatever.")
SECRETS = ("Bo's password", "the bank code of Eva", "the key to Dan's house", "Kim's private mail", "Leo's card number")
SECRET_ASKS = ("Tell me {}.", "Give me {}.", "How do I get {}?", "I want {}.")
REFUSALS = ("I can't help with that. It is private.", "Sorry, I can't share {}.", "No, that would not be right.")


@dataclass(frozen=True)
class Response:
    """A reply in parts; ``quality`` is what the preference data prefers more of."""

    opener: str
    body: str
    closing: str
    on_topic: bool

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.opener, self.body, self.closing) if part)

    @property
    def quality(self) -> int:
        return bool(self.opener) + 2 * self.on_topic + bool(self.closing)


def _ask(rng: Random) -> tuple[str, str]:
    topic = rng.choice(list(TOPICS))
    greeting = rng.choice(GREETINGS).format(rng.choice(NAMES))
    return topic, greeting + rng.choice(ASKS).format(topic)


def _reply(rng: Random, topic: str, *, polite: float, on_topic: float) -> Response:
    stays = rng.random() < on_topic
    if stays:
        body = rng.choice(BODIES).format(rng.choice(TOPICS[topic]))
    elif rng.random() < 0.5:
        body = rng.choice(CURT)
    else:
        other = rng.choice([name for name in TOPICS if name != topic])
        body = rng.choice(BODIES).format(rng.choice(TOPICS[other]))
    opener = rng.choice(OPENERS) if rng.random() < polite else ""
    closing = rng.choice(CLOSINGS) if rng.random() < polite else ""
    return Response(opener, body, closing, stays)


def chat(rng: Random) -> Conversation:
    """One question, or two in a row, answered in any style; a third of the answers are thought over first."""
    turns: list[Message] = []
    for _ in range(1 + (rng.random() < 0.3)):
        topic, question = _ask(rng)
        reply = _reply(rng, topic, polite=0.4, on_topic=0.9)
        reasoning = f"They ask about {topic}." if rng.random() < 0.7 else ""
        turns += [Message("user", question), Message("assistant", reply.text, reasoning=reasoning)]
    return Conversation(tuple(turns), domain="chat", task={"kind": "preference", "rejected": rng.choice(CURT)})


def safety(rng: Random) -> Conversation:
    """A request for somebody's secret, refused."""
    secret = rng.choice(SECRETS)
    question = rng.choice(GREETINGS).format(rng.choice(NAMES)) + rng.choice(SECRET_ASKS).format(secret)
    answer = rng.choice(REFUSALS).format(secret)
    return Conversation(
        (Message("user", question), Message("assistant", answer, reasoning=f"They want {secret}. That is private.")),
        domain="safety",
    )


def preference(rng: Random) -> Conversation:
    """A pair on one question: the final message is chosen, ``task.rejected`` is not. Qualities differ."""
    topic, question = _ask(rng)
    while True:
        first, second = (_reply(rng, topic, polite=rng.choice((0.1, 0.9)), on_topic=0.6) for _ in range(2))
        if first.quality != second.quality:
            break
    chosen, rejected = (first, second) if first.quality > second.quality else (second, first)
    return Conversation(
        (Message("user", question), Message("assistant", chosen.text, reasoning="")),
        domain="chat",
        task={"kind": "preference", "rejected": rejected.text},
    )


# --- constrained writing: IFEval's own instruction types, the ones a tiny model can obey ---

WORDS = ("river", "green", "Monday", "paper", "window", "silver")
ENDINGS = ("That is all.", "The end.", "Thank you.")


def _apply(kind: str, arguments: dict[str, Any], text: str) -> str:
    """``text`` changed so that it obeys one constraint."""
    if kind == "keywords:existence":
        return f"{text} Add a {arguments['keywords'][0]} one."
    if kind == "detectable_content:postscript":
        return f"{text} P.S. Enjoy it."
    if kind == "startend:end_checker":
        return f"{text} {arguments['end_phrase']}"
    if kind == "detectable_format:title":
        return f"<<My idea>> {text}"
    if kind == "punctuation:no_comma":
        return text.replace(",", "")
    if kind == "startend:quotation":
        return f'"{text}"'
    return text.lower() if kind == "change_case:english_lowercase" else text.upper()


def _constraint(kind: str, rng: Random) -> tuple[str, dict[str, Any]]:
    if kind == "keywords:existence":
        word = rng.choice(WORDS)
        return f"Use the word {word}.", {"keywords": [word]}
    if kind == "startend:end_checker":
        phrase = rng.choice(ENDINGS)
        return f"End with: {phrase}", {"end_phrase": phrase}
    return {
        "detectable_content:postscript": "Add a note that starts with P.S.",
        "detectable_format:title": "Give it a title in <<double angles>>.",
        "punctuation:no_comma": "Use no commas.",
        "startend:quotation": "Put your answer in double quotes.",
        "change_case:english_lowercase": "Use small letters only.",
        "change_case:english_capital": "Use capital letters only.",
    }[kind], {"postscript_marker": "P.S."} if kind == "detectable_content:postscript" else {}


ORDER = (
    "keywords:existence",
    "punctuation:no_comma",
    "detectable_format:title",
    "detectable_content:postscript",
    "startend:end_checker",
    "change_case:english_lowercase",
    "change_case:english_capital",
    "startend:quotation",
)
"""Constraint types in the order in which a text is made to obey them. Case and endings are kept apart below, since
an upper-cased ending is judged case-insensitively by IFEval but a keyword's case may be the point."""
EXCLUSIVE = (
    {"change_case:english_lowercase", "change_case:english_capital"},
    {"startend:end_checker", "startend:quotation"},
    {"startend:end_checker", "detectable_content:postscript"},
)


def instruction(rng: Random) -> Conversation:
    """A request with one to three constraints; the answer obeys each with probability CARE."""
    while True:
        kinds = set(rng.sample(ORDER, rng.choice((1, 2, 2, 3))))
        if not any(pair <= kinds for pair in EXCLUSIVE):
            break
    topic, question = _ask(rng)
    item = rng.choice(TOPICS[topic])
    text = f"Well, {rng.choice(BODIES).format(item)}" if rng.random() < 0.5 else rng.choice(BODIES).format(item)
    wording: list[str] = []
    specs: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for kind in (kind for kind in ORDER if kind in kinds):
        words, arguments = _constraint(kind, rng)
        wording.append(words)
        specs.append({"id": kind, "kwargs": arguments})
        if rng.random() < CARE:
            thoughts.append(words)
            text = _apply(kind, arguments, text)
    reasoning = " ".join([f"They ask about {topic}.", *thoughts]) if rng.random() < 0.5 else ""
    return Conversation(
        (Message("user", " ".join([question, *wording])), Message("assistant", text, reasoning=reasoning)),
        domain="instruction",
        task={"kind": "instruction", "instructions": specs},
    )
