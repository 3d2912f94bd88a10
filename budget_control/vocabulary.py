"""What thinking looks like in one vocabulary: tags, line ends and stop tokens, as tables over token ids.

Shapes: S states of the tag automaton, V tokens of the vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from nanoalign.common.errors import ConfigError


@dataclass(frozen=True, eq=False)
class ThinkingTokens:
    """Tables over a vocabulary. Built by :meth:`from_tokenizer` or :meth:`from_pieces`.

    The tag automaton reads text character by character: states below ``first_thinking`` are outside thinking (the
    number is how much of the opening tag was just read), those from it on are inside (how much of the closing tag).
    """

    texts: Sequence[str]
    """What every token adds to a text."""
    open_text: str
    close_text: str
    close_ids: tuple[int, ...]
    """The closing tag as the tokenizer writes it."""
    stop_ids: frozenset[int]
    """Tokens that end the assistant's turn."""
    first_thinking: int
    """The automaton's first state inside thinking."""
    table: np.ndarray
    """int8 [S, V + 1]: the state after a token; column V stands for ids beyond the tokenizer's, which write nothing."""
    line_ends: np.ndarray
    """bool [V + 1]: the token ends a line (nothing but blanks follow its last newline)."""
    close_position: np.ndarray
    """int64 [S]: how many tokens of ``close_ids`` a state has already seen, 0 where it fits none."""
    _inert: np.ndarray = field(repr=False)
    """bool [V + 1]: the token changes no mode and leaves no tag begun."""

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[str],
        close_ids: Sequence[int],
        open_text: str = "<think>",
        close_text: str = "</think>",
        stop_ids: Iterable[int] = (),
    ) -> "ThinkingTokens":
        """From every token's text. Raises ConfigError where a tag is empty or not what ``close_ids`` write."""
        if not open_text or not close_text:
            raise ConfigError("thinking needs an opening and a closing tag, one of them is empty")
        written = "".join(pieces[token] for token in close_ids)
        if written.lstrip() != close_text.strip():
            raise ConfigError(f"the tokenizer cannot write {close_text!r}: its tokens read {written!r}")
        table, inside = _token_table(pieces, open_text, close_text), len(open_text)
        position = np.zeros(len(table), dtype=np.int64)
        place = inside
        for count, token in enumerate(close_ids[:-1], start=1):
            place = int(table[place, token])
            if place > inside:
                position[place] = count
        base = np.where(np.arange(len(table)) >= inside, inside, 0)[:, None]
        ends = [ends_line(piece) for piece in pieces] + [False]
        return cls(
            pieces, open_text, close_text, tuple(int(token) for token in close_ids), frozenset(stop_ids), inside, table,
            np.array(ends), position, (table == base).all(axis=0),
        )  # fmt: skip

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        open_text: str = "<think>",
        close_text: str = "</think>",
        stop: Iterable[str] = (),
    ) -> "ThinkingTokens":
        """From a transformers tokenizer, byte-level BPE, SentencePiece or any other. ``stop`` are texts that end the
        turn (a chat format's); the tokenizer's own end of text is always one of them.

        Raises ConfigError where the tokenizer cannot write the closing tag or holds a stop text in several tokens.
        """
        end = tokenizer.eos_token_id
        stop_ids = set() if end is None else {int(end)}
        for text in stop:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) != 1:
                raise ConfigError(f"stop text {text!r} is {len(ids)} tokens in this tokenizer, it must be one")
            stop_ids.add(ids[0])
        candidates = [tokenizer.encode(close_text, add_special_tokens=False)]
        # SentencePiece puts a blank before a text's first word; after a line end, where the rule closes, there is none.
        line = tokenizer.encode("\n", add_special_tokens=False)
        after_line = tokenizer.encode("\n" + close_text, add_special_tokens=False)
        if after_line[: len(line)] == line:
            candidates.append(after_line[len(line) :])
        if not candidates[0]:
            raise ConfigError(f"the tokenizer cannot write {close_text!r}: it gives no token for it")
        pieces = token_texts(tokenizer, candidates[0][-1])
        exact = [ids for ids in candidates if "".join(pieces[token] for token in ids) == close_text]
        return cls.from_pieces(pieces, (exact or candidates)[0], open_text, close_text, stop_ids)

    @cached_property
    def id_of_text(self) -> dict[str, int]:
        """A token for every text, whichever of those that read alike."""
        return {text: token for token, text in enumerate(self.texts)}

    def step(self, place: int, token: int) -> int:
        """The automaton's state after a token."""
        return int(self.table[place, min(token, self.table.shape[1] - 1)])

    def ends_line(self, token: int) -> bool:
        return bool(self.line_ends[min(token, len(self.line_ends) - 1)])

    def scan(self, ids: Sequence[int], place: int = 0) -> int:
        """The automaton's state after many tokens; long prompts cost only their tokens near a tag."""
        columns = np.minimum(np.asarray(ids, dtype=np.int64), self.table.shape[1] - 1)
        after_previous = 0
        for index in np.flatnonzero(~self._inert[columns]).tolist():
            if index != after_previous:
                place = self._mode_start(place)
            place = int(self.table[place, columns[index]])
            after_previous = index + 1
        return place if after_previous == len(columns) else self._mode_start(place)

    def scan_text(self, text: str) -> int:
        """The automaton's state after a text."""
        inside = False
        while (tag := self.close_text if inside else self.open_text) in text:
            text, inside = text.split(tag, 1)[1], not inside
        begun = next(count for count in range(len(tag) - 1, -1, -1) if text.endswith(tag[:count]))
        return begun + (self.first_thinking if inside else 0)

    def _mode_start(self, place: int) -> int:
        return self.first_thinking if place >= self.first_thinking else 0


def token_texts(tokenizer: Any, anchor: int) -> list[str]:
    """What every token adds to a text. Each is decoded behind ``anchor``, a token that writes something: alone, a
    SentencePiece token loses its blank. Bytes that are not a complete character read as U+FFFD."""
    pairs = [[anchor, token] for token in range(len(tokenizer))]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        texts = backend.decode_batch(pairs, skip_special_tokens=False)
        prefix = backend.decode([anchor], skip_special_tokens=False)
    else:
        texts = [tokenizer.decode(pair, clean_up_tokenization_spaces=False) for pair in pairs]
        prefix = tokenizer.decode([anchor], clean_up_tokenization_spaces=False)
    return [text[len(prefix) :] for text in texts]


def ends_line(piece: str) -> bool:
    """The text ends a line: nothing but white space follows its last newline."""
    return "\n" in piece and not piece.rpartition("\n")[2].strip()


def _tag_automaton(open_text: str, close_text: str, alphabet: str) -> np.ndarray:
    """int8 [S, 1 + len(alphabet)]: the next state for any other character (column 0) and for each of ``alphabet``."""
    states = [(open_text, read) for read in range(len(open_text))]
    states += [(close_text, read) for read in range(len(close_text))]
    first = {open_text: 0, close_text: len(open_text)}
    other = {open_text: close_text, close_text: open_text}
    table = np.zeros((len(states), 1 + len(alphabet)), dtype=np.int8)
    for state, (tag, read) in enumerate(states):
        table[state, 0] = first[tag]
        for column, character in enumerate(alphabet, start=1):
            text = tag[:read] + character
            if text == tag:
                table[state, column] = first[other[tag]]
            else:
                longest = max(n for n in range(len(text) + 1) if text.endswith(tag[:n]))
                table[state, column] = first[tag] + longest
    return table


def _token_table(pieces: Sequence[str], open_text: str, close_text: str) -> np.ndarray:
    """int8 [S, V + 1]: the automaton run over every token's text from every state, all tokens at once."""
    alphabet = "".join(sorted(set(open_text + close_text)))
    automaton = _tag_automaton(open_text, close_text, alphabet)
    characters = np.frombuffer("".join(pieces).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    columns = np.zeros(len(characters), dtype=np.int64)
    for column, character in enumerate(alphabet, start=1):
        columns[characters == ord(character)] = column
    lengths = np.array([len(piece) for piece in pieces] + [0])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    longest_first = np.argsort(-lengths, kind="stable")
    states = np.repeat(np.arange(len(automaton), dtype=np.int8)[:, None], len(lengths), axis=1)
    for offset in range(int(lengths.max())):
        live = longest_first[: int((lengths > offset).sum())]
        states[:, live] = automaton[states[:, live], columns[starts[live] + offset]]
    return states
