"""The first process of a stage that fails is told to the user, whatever the others say and when."""

from pathlib import Path

import pytest

from nanoalign import failure
from nanoalign.common.errors import DataError, StageError

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:4242")


def tell(folder: Path, rank: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "3")
    failure.tell(folder, error)


def test_the_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(tmp_path, 2, DataError("row 7"), monkeypatch)
    tell(tmp_path, 0, StageError("later"), monkeypatch)
    assert failure.told(tmp_path) == failure.Failure("rank 2 of 3: row 7", True)
    failure.clear(tmp_path)
    assert failure.told(tmp_path) is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_lost_connection_counts_only_alone(
    tmp_path: Path, order: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = StageError("no weights came")
    wrapped.__cause__ = LOST
    tell(tmp_path, 2, wrapped, monkeypatch)
    for rank in order:
        tell(tmp_path, rank, [LOST, ValueError("boom")][rank], monkeypatch)
    assert failure.told(tmp_path) == failure.Failure("rank 1 of 3: ValueError: boom", False)
    failure.clear(tmp_path)
    tell(tmp_path, 0, LOST, monkeypatch)
    told = failure.told(tmp_path)
    assert told is not None and "Connection closed" in told.error


def test_one_process_has_no_rank_and_its_crash_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    failure.tell(tmp_path, ValueError("boom"))
    assert failure.told(tmp_path) is None
    failure.tell(tmp_path, DataError("row 7"))
    assert failure.told(tmp_path) == failure.Failure("row 7", True)
