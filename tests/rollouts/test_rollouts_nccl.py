"""The protocol of weights by NCCL, against a scripted server and a group that is a queue. NCCL itself needs GPUs."""

import math
import queue
import time
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError
from nanoalign.models.weights import buckets
from nanoalign.rollouts import nccl
from nanoalign.rollouts.base import EngineLostError
from nanoalign.rollouts.delivery import ByFolder, ByNCCL
from nanoalign.rollouts.nccl import NCCLTransfer, pack
from nanoalign.rollouts.pool import ServerPool
from nanoalign.rollouts.server import Server
from tests.rollouts.fake_server import FakeServer
from tests.rollouts.test_rollouts_pool import FakeKeeper, requests, until

pytestmark = pytest.mark.filterwarnings("ignore:restarting the rollout engine")


class FakeGroup:
    """A queue from the trainer to the workers behind one port."""

    groups: ClassVar[dict[int, "FakeGroup"]] = {}

    def __init__(self, host, port, size, device) -> None:
        self.size, self.wire, self.aborted, self.taken = size, queue.Queue(), False, queue.Queue()
        FakeGroup.groups[port] = self

    def broadcast(self, flat) -> None:
        self.wire.put(flat)
        while not self.aborted:
            try:
                return self.taken.get(timeout=0.01)
            except queue.Empty:
                continue
        raise RuntimeError("aborted")

    def abort(self) -> None:
        self.aborted = True


class Worker(FakeServer):
    """Takes weights as vLLM's workers do: by names, dtypes and shapes that it is told, out of one packed buffer."""

    version = "0.31.0"

    def answer(self, route, body):
        if route == "/get_world_size":
            return {"world_size": 2}
        if route == "/version":
            return {"version": self.version}
        if route == "/init_weight_transfer_engine":
            self.init = body["init_info"]
            until(lambda: self.init["master_port"] in FakeGroup.groups)
            self.group = FakeGroup.groups[self.init["master_port"]]
        elif route == "/start_weight_update":
            self.tensors = {}
        elif route == "/update_weights":
            self.update = body["update_info"]
            flat = self.group.wire.get(timeout=10)
            sizes = [
                math.prod(shape) * getattr(torch, dtype).itemsize
                for dtype, shape in zip(self.update["dtype_names"], self.update["shapes"], strict=True)
            ]
            parts = flat.split(sizes)
            assert sum(sizes) <= (self.init | self.update)["packed_buffer_size_bytes"]
            for name, dtype, shape, part in zip(
                self.update["names"], self.update["dtype_names"], self.update["shapes"], parts, strict=True
            ):
                self.tensors[name] = part.contiguous().view(getattr(torch, dtype)).view(shape)
            self.group.taken.put(None)
        elif route == "/finish_weight_update":
            self.weights = int(self.tensors["w"])
        else:
            return super().answer(route, body)
        return {}


class WorkerKeeper(FakeKeeper):
    def start(self, given_up):
        self.fakes.append(Worker())
        return Server(self.fake.url, self.deadline_s, nccl_device=0)


@pytest.fixture(autouse=True)
def fake_group(monkeypatch):
    monkeypatch.setattr(nccl, "Group", FakeGroup)


def weights(value):
    return [
        ("odd", torch.ones(1, 3)),
        ("v", torch.ones(2, 3)),
        ("w", torch.tensor([float(value)])),
        ("ids", torch.arange(3)),
    ]


@pytest.fixture
def pool(thinking):
    keepers = [WorkerKeeper(deadline_s=2.0), WorkerKeeper(deadline_s=2.0)]
    delivery = ByNCCL(torch.device("cpu"), torch.bfloat16)
    opened = ServerPool(keepers, thinking, delivery, parallel=4, restarts=2, control_s=2.0, keep=True)
    yield opened
    opened.close()


def test_every_server_gets_them_packed(pool):
    pool.send(iter(weights(3)), 3)
    assert {each.versions for each in pool.generate(requests(8))} == {(3,) * 5}
    for slot in pool.slots:
        worker = slot.keeper.fake
        assert worker.init["world_size"] == 3
        assert worker.init["packed"]
        assert "packed" not in worker.update
        assert worker.tensors["v"].dtype == torch.bfloat16  # as the server computes
        assert worker.tensors["w"].dtype == torch.float32
        assert worker.tensors["ids"].tolist() == [0, 1, 2]
    assert len({slot.keeper.fake.init["master_port"] for slot in pool.slots}) == 2


def test_a_server_that_hangs_in_a_sync_is_lost_and_the_other_is_not(pool):
    hung = pool.slots[0].keeper.fake
    group, other = hung.group, pool.slots[1].keeper.fake.group
    hung.hangs.add("/update_weights")
    tensors, begun = iter(weights(1)), time.monotonic()
    pool.send(tensors, 1)
    assert time.monotonic() - begun < 30
    assert next(tensors, None) is None
    until(lambda: group.aborted)
    assert not other.aborted
    assert pool.lost == 1
    until(pool.wants_weights)
    pool.send(iter(weights(2)), 2)
    assert {each.versions for each in pool.generate(requests(8))} == {(2,) * 5}
    assert pool.slots[0].keeper.fake is not hung


def test_older_servers_are_told_with_each_update(monkeypatch):
    monkeypatch.setattr(Worker, "version", "0.24.0+cu129")
    worker = Worker()
    transfer = NCCLTransfer(Server(worker.url, 5.0).ask, worker.url, 5.0, 0)
    transfer.begin()
    transfer.send(pack(weights(1), "cpu"))
    transfer.finish()
    assert "packed" not in worker.init
    assert worker.update["packed"]
    assert worker.weights == 1
    transfer.close()
    until(lambda: worker.group.aborted)
    with pytest.raises(EngineLostError, match="left"):
        transfer.send(pack(weights(1), "cpu"))
    worker.die()


def test_an_update_that_is_refused_ends_at_once():
    worker = Worker()
    transfer = NCCLTransfer(Server(worker.url, 60.0).ask, worker.url, 60.0, 0)
    worker.fails["/update_weights"] = 400
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="refuses"):
        transfer.send(pack(weights(1), "cpu"))
    assert time.monotonic() - begun < 30
    worker.die()


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 40))
def test_buckets_hold_all_in_order_and_little_more_than_their_limit(sizes, limit):
    tensors = [(str(place), torch.zeros(size, dtype=torch.uint8)) for place, size in enumerate(sizes)]
    found = [list(bucket) for bucket in buckets(iter(tensors), limit)]
    assert [each for bucket in found for each in bucket] == tensors
    totals = [sum(tensor.numel() for _, tensor in bucket) for bucket in found]
    assert all(total > limit for total in totals[:-1])
    assert all(total - bucket[-1][1].numel() <= limit for total, bucket in zip(totals, found, strict=True))


def test_a_folder_has_each_storage_once(tmp_path):
    from safetensors.torch import load_file

    tied = torch.ones(4, 4)
    lazily = ((str(number), torch.full((4, 4), float(number))) for number in range(20))  # memory used again
    delivery = ByFolder(tmp_path / "weights", torch.float32, bucket_bytes=100)
    delivery([("a", tied), ("b", torch.zeros(30)), ("tied", tied)], lambda: None, lambda ask: None)
    files = [load_file(file) for file in sorted((tmp_path / "weights").iterdir())]
    assert [name for file in files for name in file] == ["a", "b"]
    delivery(lazily, lambda: None, lambda ask: None)
    found = {name: each for file in (tmp_path / "weights").iterdir() for name, each in load_file(file).items()}
    assert {name: each[0, 0].item() for name, each in found.items()} == {str(n): float(n) for n in range(20)}
