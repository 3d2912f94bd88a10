"""Data sets on the Hugging Face hub; whether it can be reached is asked once, not six times."""

from collections.abc import Iterator, Mapping
from typing import Any

PATIENCE_S = 10.0
"""Seconds for one answer of the hub."""


def hub_rows(repository: str, *arguments: Any, **named: Any) -> Iterator[Mapping[str, Any]]:
    """``datasets.load_dataset(repository, ...)``, row by row. `datasets` tries each request six times, over 24 to 45 s
    in all, before it says that there is no network, or takes its cache; here one failed connection counts as offline.

    Raises:
        Exception: whatever `datasets`, the hub and the network raise.
    """
    import datasets
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    known = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=PATIENCE_S)
    except httpx.TransportError:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        pass  # a folder, or what `datasets` says more of
    try:
        rows = datasets.load_dataset(repository, *arguments, **named)
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = known
    yield from rows
