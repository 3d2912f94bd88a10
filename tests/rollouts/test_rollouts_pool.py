"""The pool's logic against scripted servers: spreading, losses, new weights while it generates."""

import threading
import time
from concurrent.futures import wait
from dataclasses import replace

import pytest
import torch

from nanoalign.budget_control.token_route import ROUTE
from nanoalign.common.errors import ConfigError
from nanoalign.rollouts.base import Completion, EngineLostError, Request, Sampling
from nanoalign.rollouts.delivery import ByFolder
from nanoalign.rollouts.pool import ServerPool
from nanoalign.rollouts.server import Server
from tests.rollouts.fake_server import FakeServer, token

pytestmark = pytest.mark.filterwarnings("ignore:restarting the rollout engine")


class FakeKeeper:
    """Starts a scripted server, the next of ``scripts`` each time."""

    def __init__(self, *scripts, deadline_s=20.0) -> None:
        self.scripts, self.deadline_s, self.fakes = list(scripts), deadline_s, []

    @property
    def fake(self) -> FakeServer:
        return self.fakes[-1]

    def start(self, given_up) -> Server:
        script = self.scripts.pop(0) if self.scripts else {}
        if script is None:
            raise EngineLostError("no start")
        fake = FakeServer()
        for name, value in script.items():
            setattr(fake, name, value)
        self.fakes.append(fake)
        return Server(fake.url, self.deadline_s)

    def stop(self, server) -> None:
        if server is not None:
            self.fake.die()


@pytest.fixture
def open_pool(thinking, tmp_path):
    pools = []

    def opened(*keepers, parallel=4, restarts=2, control_s=5.0, keep=True, budgets=True) -> ServerPool:
        delivery = ByFolder(tmp_path / f"weights-{len(pools)}", torch.float32, bucket_bytes=8)
        pool = ServerPool(
            keepers, thinking, delivery, parallel=parallel, restarts=restarts, control_s=control_s, keep=keep,
            budgets=budgets,
        )  # fmt: skip
        pools.append(pool)
        return pool

    yield opened
    for pool in pools:
        pool.close()


def requests(count, tokens=5, **settings):
    return [Request((number + 1,), Sampling(tokens, seed=number, **settings)) for number in range(count)]


def weights(value):
    return [("v", torch.zeros(3)), ("w", torch.tensor(float(value))), ("z", torch.zeros(2, 2))]


def expected(request, versions):
    """The tokens of a completion drawn under these weights, one after the other."""
    ids = []
    for each in versions:
        ids.append(token([*request.prompt_ids, *ids], each))
    return tuple(ids)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def check(completions, asked):
    """Each token of each completion was drawn under the weights of its version."""
    for request, completion in zip(asked, completions, strict=True):
        assert len(completion.token_ids) == request.sampling.max_tokens
        assert completion.token_ids == expected(request, completion.versions)
        assert completion.logprobs == tuple(-float(each) for each in completion.versions)
        assert list(completion.versions) == sorted(completion.versions)


def test_prompts_are_spread_and_come_back_in_order(open_pool):
    keepers = [FakeKeeper({"token_s": 0.05}), FakeKeeper(), FakeKeeper()]
    pool, asked = open_pool(*keepers), requests(40)
    found = pool.generate(asked)
    assert [each.token_ids for each in found] == [expected(each, [0] * 5) for each in asked]
    assert all(each.versions == () for each in found)
    assert [keeper.fake.most for keeper in keepers] == [4, 4, 4]
    slow, *fast = [len(keeper.fake.bodies) for keeper in keepers]
    assert slow < min(fast)
    assert sum([slow, *fast]) == 40
    assert pool.max_length == 4096
    assert pool.lost == 0
    told = {}
    assert pool.generate(asked[:9], told.__setitem__) == [told[place] for place in range(9)] == found[:9]


def test_the_least_loaded_server_gets_the_next(open_pool):
    keepers = [FakeKeeper({"token_s": 0.05}) for _ in range(3)]
    pool = open_pool(*keepers)
    pool.generate(requests(6, tokens=2))
    assert [len(keeper.fake.bodies) for keeper in keepers] == [2, 2, 2]


def test_scores_come_from_the_servers(open_pool):
    assert open_pool(FakeKeeper(), FakeKeeper()).score([[5, 6, 7], [8, 9]]) == [[-6.0, -7.0], [-9.0]]


def test_a_lost_server_is_replaced_and_nothing_is_lost(open_pool):
    keepers = [FakeKeeper(), FakeKeeper()]
    pool, asked = open_pool(*keepers), requests(40, tokens=20)
    futures = pool.submit(asked)
    until(lambda: keepers[0].fake.now == 4)
    first = keepers[0].fake
    first.die()
    found = [future.result(20) for future in futures]
    assert [each.token_ids for each in found] == [expected(each, [0] * 20) for each in asked]
    assert pool.lost == 1
    until(lambda: keepers[0].fake is not first and pool.slots[0].state == "ready")
    pool.generate(asked[:8])
    assert keepers[0].fake.bodies


def test_requests_of_a_lost_server_go_first(open_pool):
    keeper = FakeKeeper()
    pool = open_pool(keeper, parallel=1)
    order, asked = [], requests(6)
    for number, future in enumerate(pool.submit(asked)):
        future.add_done_callback(lambda _, number=number: order.append(number))
    until(lambda: len(order) == 2)
    keeper.fake.die()
    until(lambda: len(order) == 6)
    assert order == [0, 1, 2, 3, 4, 5]


def test_a_replaced_server_gets_the_weights_that_are_held(open_pool):
    keeper = FakeKeeper()
    pool, asked = open_pool(keeper), requests(4)
    pool.load_weights(iter(weights(7)))
    keeper.fake.die()
    found = pool.generate(asked)
    assert [each.token_ids for each in found] == [expected(each, [7] * 5) for each in asked]
    assert not pool.wants_weights()
    assert len(keeper.fakes) == 2


def test_a_replaced_server_waits_for_the_next_send(open_pool):
    keepers = [FakeKeeper(), FakeKeeper()]
    pool, asked = open_pool(*keepers), requests(12)
    assert not pool.wants_weights()
    pool.send(weights(1), 1)
    assert not pool.wants_weights()
    keepers[0].fake.die()
    check(pool.generate(asked), asked)
    until(pool.wants_weights)
    assert not keepers[0].fake.bodies
    pool.send(weights(2), 2)
    assert not pool.wants_weights()
    found = pool.generate(asked)
    check(found, asked)
    assert {each.versions for each in found} == {(2,) * 5}
    assert keepers[0].fake.bodies


def test_asking_servers_that_wait_for_weights_ends(open_pool, monkeypatch):
    monkeypatch.setattr("nanoalign.rollouts.pool.LOOK_S", 0.05)
    keeper = FakeKeeper()
    pool = open_pool(keeper)
    pool.send(weights(1), 1)
    keeper.fake.die()
    with pytest.raises(EngineLostError, match="waits for weights"):
        pool.generate(requests(3))
    pool.send(weights(2), 2)
    assert pool.generate(requests(3))


def test_a_hung_server_is_given_up_at_the_deadline(open_pool):
    keepers = [FakeKeeper({"hangs": {ROUTE}}, deadline_s=0.3), FakeKeeper(deadline_s=20.0)]
    pool, asked = open_pool(*keepers, parallel=2), requests(8)
    found = pool.generate(asked)
    assert [each.token_ids for each in found] == [expected(each, [0] * 5) for each in asked]
    assert pool.lost == 1


@pytest.mark.parametrize("keep", [True, False])
def test_weights_come_in_while_it_generates(open_pool, keep):
    """Three times; most completions are cut off, some wait in the queue."""
    keepers = [FakeKeeper(), FakeKeeper()]
    pool, asked = open_pool(*keepers, keep=keep), requests(24, tokens=60)
    pool.send(weights(1), 1)
    futures = pool.submit(asked)
    for version in (2, 3, 4):
        until(lambda: all(keeper.fake.now for keeper in keepers))
        time.sleep(0.03)
        pool.send(weights(version), version)
        assert [keeper.fake.weights for keeper in keepers] == [version] * 2
    found = [future.result(30) for future in futures]
    check(found, asked)
    assert 4 in {each.versions[-1] for each in found}
    cut = [each for each in found if len(set(each.versions)) > 1]
    assert bool(cut) == keep
    seeds = {body["seed"] for keeper in keepers for body in keeper.fake.bodies}
    assert (len(seeds) > 24) == keep
    lengths = {len(body["prompt"]) - 1 + body["max_tokens"] for keeper in keepers for body in keeper.fake.bodies}
    assert lengths == {60}


def test_a_budget_counts_on_over_what_was_written(open_pool):
    keeper = FakeKeeper()
    pool = open_pool(keeper)
    asked = requests(2, tokens=60, thinking_budget=9, grace=3)
    pool.send(weights(1), 1)
    futures = pool.submit(asked)
    until(lambda: keeper.fake.now == 2)
    time.sleep(0.03)
    pool.send(weights(2), 2)
    wait(futures)
    first, then = keeper.fake.bodies[:2], keeper.fake.bodies[2:]
    assert [body["vllm_xargs"] for body in first] == [{"thinking_budget": 9, "grace": 3}] * 2
    for body in then:
        assert body["vllm_xargs"] == {"thinking_budget": 9, "grace": 3, "generated": len(body["prompt"]) - 1}
        assert body["vllm_xargs"]["generated"] > 0


def test_a_request_that_reaches_a_server_after_its_pause_comes_back_too(open_pool):
    """The first pause finds a request on its way; the server keeps it, unstarted, and gives it back at the second."""
    keeper = FakeKeeper()
    pool = open_pool(keeper)
    pool.send(weights(1), 1)
    keeper.fake.hangs.add(ROUTE)
    future = pool.submit(requests(1))[0]
    until(lambda: ROUTE in keeper.fake.routes)

    pauses = keeper.fake.routes.count("/pause")

    def arrive() -> None:
        until(lambda: keeper.fake.routes.count("/pause") > pauses)
        time.sleep(0.02)  # the pause has been answered
        keeper.fake.hangs.clear()

    threading.Thread(target=arrive, daemon=True).start()
    pool.send(weights(2), 2)
    assert future.result(10).versions == (2,) * 5
    assert pool.lost == 0


def test_a_server_that_does_not_give_back_is_lost(open_pool):
    keeper = FakeKeeper({"hangs": {ROUTE}})
    pool = open_pool(keeper, control_s=0.3)
    future = pool.submit(requests(1))[0]
    pool.send(weights(1), 1)
    until(pool.wants_weights)
    pool.send(weights(2), 2)
    assert future.result(10).versions == (2,) * 5


@pytest.mark.parametrize(("broken", "how"), [("/pause", 500), ("/collective_rpc", 500), ("/resume", 500)])
def test_a_send_that_fails_at_one_server_reaches_the_others(open_pool, broken, how):
    keepers = [FakeKeeper(), FakeKeeper()]
    pool, asked = open_pool(*keepers), requests(12, tokens=20)
    pool.send(weights(1), 1)
    futures = pool.submit(asked)
    until(lambda: all(keeper.fake.now for keeper in keepers))
    keepers[0].fake.fails[broken] = how
    tensors = iter(weights(2))
    pool.send(tensors, 2)
    assert next(tensors, None) is None
    check([future.result(20) for future in futures], asked)
    until(pool.wants_weights)
    assert pool.lost == 1


def test_a_send_without_servers_reads_its_tensors_to_the_end(open_pool):
    gate = threading.Event()

    class Slow(FakeKeeper):
        def start(self, given_up):
            if self.fakes:
                gate.wait(10)
            return super().start(given_up)

    keeper = Slow()
    pool = open_pool(keeper)
    future = pool.submit(requests(1, tokens=1000))[0]
    keeper.fake.die()
    until(lambda: pool.lost == 1)
    tensors = iter(weights(1))
    pool.send(tensors, 1)
    assert next(tensors, None) is None
    assert not pool.wants_weights()
    gate.set()
    until(pool.wants_weights)
    future.cancel()


def test_tensors_that_fail_leave_a_server_that_waits(open_pool):
    keeper = FakeKeeper()
    pool = open_pool(keeper)

    def broken():
        yield weights(1)[0]
        raise ValueError("gathered nothing")

    with pytest.raises(ValueError, match="gathered nothing"):
        pool.send(broken(), 1)
    pool.send(weights(2), 2)
    assert pool.generate(requests(1))[0].versions == (2,) * 5


def test_the_allowance_of_restarts_ends_all_that_wait(open_pool):
    """One start, and two restarts that fail."""
    keeper = FakeKeeper({}, None, None, None)
    pool = open_pool(keeper, restarts=2)
    futures = pool.submit(requests(9, tokens=1000))
    until(lambda: keeper.fake.now == 4)
    keeper.fake.die()
    for future in futures:
        with pytest.raises(EngineLostError, match="no start"):
            future.result(10)
    assert len(keeper.scripts) == 1
    with pytest.raises(EngineLostError, match="no start"):
        pool.generate(requests(1))
    tensors = iter(weights(1))
    with pytest.raises(EngineLostError, match="no start"):
        pool.send(tensors, 1)
    assert next(tensors, None) is None


def test_an_answer_renews_the_allowance(open_pool):
    keeper = FakeKeeper({}, None, {}, None, {})
    pool = open_pool(keeper, restarts=2)
    for _ in range(2):
        assert pool.generate(requests(2))
        keeper.fake.die()
    assert pool.generate(requests(2))
    assert pool.lost == 4


def test_one_server_that_is_given_up_leaves_the_others(open_pool):
    keepers = [FakeKeeper({}, None), FakeKeeper()]
    pool = open_pool(*keepers, restarts=1)
    pool.generate(requests(8))
    keepers[0].fake.die()
    asked = requests(8)
    assert [each.token_ids for each in pool.generate(asked)] == [expected(each, [0] * 5) for each in asked]
    until(lambda: pool.slots[0].state == "dead")
    assert not pool.wants_weights()


def test_a_refused_request_is_no_lost_server(open_pool):
    keeper = FakeKeeper({"fails": {ROUTE: 400}})
    pool = open_pool(keeper)
    with pytest.raises(ConfigError, match="refuses"):
        pool.generate(requests(9))
    keeper.fake.fails.clear()
    assert pool.generate(requests(2))
    assert pool.lost == 0


def test_a_server_without_the_routes_for_weights_is_the_users_fault(open_pool):
    pool = open_pool(FakeKeeper({"fails": {"/pause": 404}}))
    with pytest.raises(ConfigError, match="VLLM_SERVER_DEV_MODE"):
        pool.send(weights(1), 1)


def test_a_server_that_does_not_start_ends_the_others(open_pool):
    keepers = [FakeKeeper(), FakeKeeper(None)]
    with pytest.raises(EngineLostError, match="no start"):
        open_pool(*keepers)
    until(lambda: keepers[0].fake.dead)


def test_close_while_busy(open_pool):
    keeper = FakeKeeper()
    pool = open_pool(keeper)
    futures = pool.submit(requests(9, tokens=10_000))
    pool.close()
    assert all(future.cancelled() for future in futures)
    assert keeper.fake.dead
    assert pool.lost == 0
    with pytest.raises(EngineLostError, match="closed"):
        pool.submit(requests(1))


def test_busy_seconds_leave_out_idle_and_paused_ones(open_pool):
    keeper = FakeKeeper()
    pool = open_pool(keeper)
    assert pool.busy_s() == 0.0
    pool.generate(requests(1))
    busy = pool.busy_s()
    assert busy > 0.0
    assert pool.busy_s() == busy
    keeper.fake.on_load = lambda: time.sleep(0.3)
    future = pool.submit(requests(1, tokens=10))[0]
    pool.send(weights(1), 1)
    future.result(10)
    assert busy < pool.busy_s() < busy + 0.3


def test_versions_are_left_out_where_some_are_not_known(open_pool):
    keeper = FakeKeeper()
    pool = open_pool(keeper)
    future = pool.submit(requests(1, tokens=60))[0]
    until(lambda: keeper.fake.now)
    time.sleep(0.02)
    pool.send(weights(1), 1)
    found = future.result(10)
    assert found.versions == ()
    assert isinstance(found, Completion)
    assert len(replace(found).token_ids) == 60


def test_a_budget_is_refused_where_servers_keep_none(open_pool):
    with pytest.raises(ConfigError, match="thinking budget"):
        open_pool(FakeKeeper(), budgets=False).submit([Request((5,), Sampling(4, thinking_budget=2))])
