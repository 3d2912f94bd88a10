"""Plays many makers at once: their questions are asked together, their samples come out in the order of the makers."""

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from nanoalign.data_recipes.conversation import Conversation
from nanoalign.data_recipes.synthetic.served import Query, Reply, ServedModel

AT_ONCE = 8
"""Makers under way for each request that may be: a slow reply then holds few others up."""


@dataclass
class Made:
    """What a maker made: samples, and reasons for what it did not keep, counted."""

    samples: list[Conversation] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


Maker = Generator[list[Query], list[Reply], Made]
"""Yields questions (at least one), is sent their replies in order, returns what it made."""


@dataclass
class _Playing:
    maker: Maker
    asks: list[Query] = field(default_factory=list)
    made: Made | None = None

    def send(self, replies: list[Reply] | None) -> None:
        """One step, up to the next questions or the end."""
        try:
            self.asks = next(self.maker) if replies is None else self.maker.send(replies)
        except StopIteration as end:
            self.asks, self.made = [], end.value


def drive(makers: Iterable[Maker], model: ServedModel, at_once: int) -> Iterator[Made]:
    """What each maker made, in order; the same for the same replies.

    Makers advance together, ``at_once`` of them, one round of questions at a time, so that who is asked what when does
    not depend on how quick the replies were. Raises EndpointError as :meth:`ServedModel.answer` does.
    """
    waiting = iter(makers)
    active: deque[_Playing] = deque()
    while True:
        for maker in islice(waiting, at_once - len(active)):
            active.append(_Playing(maker))
            active[-1].send(None)
        if not active:
            return
        while active and (made := active[0].made) is not None:
            active.popleft()
            yield made
        asking = [each for each in active if each.made is None]
        replies = iter(model.answer([ask for each in asking for ask in each.asks]))
        for each in asking:
            each.send([next(replies) for _ in each.asks])
