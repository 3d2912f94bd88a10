"""A server of our own, as it is started."""

import subprocess
from pathlib import Path

from nanoalign.rollouts.local_server import LocalServer


def test_a_server_is_no_rank_of_the_trainers_launcher(tmp_path: Path, monkeypatch) -> None:
    """torch's store would be sought at an agent of the launcher's, for ever."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_USE_AGENT_STORE", "GROUP_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started: dict[str, str] = {}

    class Popen:
        def __init__(self, command, env, **more) -> None:
            started.update(env)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    LocalServer(tmp_path, ("<think>", "</think>"), tmp_path / "server.log", [])
    assert started["HF_HUB_OFFLINE"] == started["VLLM_SERVER_DEV_MODE"] == "1"
    unwanted = ("RANK", "WORLD", "LOCAL_", "MASTER", "TORCHELASTIC", "GROUP")
    assert not [name for name in started if name.startswith(unwanted)]
