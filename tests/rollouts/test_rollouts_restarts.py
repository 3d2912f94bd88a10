"""Lost engines: asked again with the weights they had, at most so many times."""

import pytest

from nanoalign.common.errors import ConfigError
from nanoalign.rollouts.base import Completion, EngineLostError, Request, Sampling
from nanoalign.rollouts.local_server import visible_devices
from nanoalign.rollouts.restarts import RestartingEngine

REQUEST = Request((1, 2), Sampling(max_tokens=1))


class Fragile:
    """Dies when one of ``dies_at`` generate calls of all engines of a test comes."""

    calls = 0

    def __init__(self, dies_at: set[int], story: list[str]) -> None:
        self.dies_at, self.story, self.weights = dies_at, story, {}
        story.append("start")

    def generate(self, requests):
        Fragile.calls += 1
        if Fragile.calls in self.dies_at:
            raise EngineLostError(f"call {Fragile.calls}")
        return [Completion((self.weights["w"],), (0.0,), (False,), "stop") for _ in requests]

    def load_weights(self, tensors):
        self.weights = dict(tensors)
        self.story.append(f"weights {self.weights['w']}")

    def close(self):
        self.story.append("close")


@pytest.fixture
def story():
    Fragile.calls = 0
    return []


def test_a_lost_engine_comes_back_with_its_weights(story):
    engine = RestartingEngine(lambda: Fragile({2}, story), restarts=2)
    engine.load_weights({"w": 5}.items())
    assert engine.generate([REQUEST])[0].token_ids == (5,)
    engine.load_weights({"w": 6}.items())
    with pytest.warns(UserWarning, match="restarting the rollout engine, 1 restarts left: call 2"):
        assert engine.generate([REQUEST, REQUEST])[1].token_ids == (6,)
    assert story == ["start", "weights 5", "weights 6", "close", "start", "weights 6"]
    assert engine.lost == 1


@pytest.mark.filterwarnings("ignore:restarting the rollout engine")
def test_the_last_loss_goes_through(story):
    engine = RestartingEngine(lambda: Fragile({1, 2, 3}, story), restarts=2)
    engine.load_weights({"w": 5}.items())
    with pytest.raises(EngineLostError, match="call 3"):
        engine.generate([REQUEST])
    assert story.count("start") == 3
    assert engine.generate([REQUEST])[0].token_ids == (5,)  # the bound is for one question


@pytest.mark.filterwarnings("ignore:restarting the rollout engine")
def test_a_start_that_loses_its_engine_counts(story):
    def start():
        if story:
            story.append("no start")
            raise EngineLostError("no server")
        return Fragile({1}, story)

    engine = RestartingEngine(start, restarts=2)
    with pytest.raises(EngineLostError, match="no server"):
        engine.generate([REQUEST])
    assert story == ["start", "close", "no start", "close", "no start"]


def test_a_servers_gpus_are_counted_among_those_that_the_stage_sees():
    assert visible_devices([1, 2], None) == "1,2"
    assert visible_devices([1], "4,7") == "7"
    with pytest.raises(ConfigError, match=r"gpus: 2 is not among the 2"):
        visible_devices([2], "4,7")
