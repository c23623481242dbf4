"""States: what is saved of a dataset's iteration, and whether a saved state fits a dataset.

A state is plain data that JSON can hold:

    {"format": 1, "dataset": "BlenderDataset", "of": {"seed": 0, "length": 100, ...}, "epoch": 2, "stream": {...}}

`of` is what must be the same where the state is loaded, because the rest says which samples of exactly this were taken.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch.utils.data import get_worker_info

from ..checks import check_whole
from ..errors import ConfigError

_log = logging.getLogger("asyncblend")

_FORMAT = 1
_LOADERS = ("_snapshot", "_num_yielded")  # names in the states of a StatefulDataLoader

_EACH_LOADER = (
    "a DataLoader with workers is resumed by torchdata's StatefulDataLoader alone, whose own state_dict() has the states "
    "of its workers"
)
_EACH_RANK = "resume with as many ranks, or the same `shard`, and give each rank the state that it saved itself"
_ADVICE = {
    "workers": f"resume with the num_workers that was saved; {_EACH_LOADER}",
    "worker": _EACH_LOADER,
    "ranks": _EACH_RANK,
    "rank": _EACH_RANK,
    "workers_with_blenders": "resume with as many instances",
}


def check_epoch(name: str, value: object) -> None:
    """Raise ConfigError if a value is no epoch: a whole number from 0 on, which torch's integers can hold."""
    check_whole(name, value, 0)
    if isinstance(value, int) and value >= 2**63:
        raise ConfigError(f"{name} must be below 2**63; got {value}")


def saved(dataset: str, of: Mapping[str, Any], epoch: int, taken: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a dataset of this kind."""
    return {"format": _FORMAT, "dataset": dataset, "of": of, "epoch": epoch, **taken}


def check_state(state: Any, dataset: str, names: set[str]) -> None:
    """Check that something is a state of this kind of dataset, which has these names beside the common ones.

    Raises:
        ConfigError: It is none, or of another kind of dataset or another format.
    """
    if not isinstance(state, Mapping) or "format" not in state:
        hint = ""
        if isinstance(state, Mapping) and any(name in state for name in _LOADERS):
            hint = "; it is that of a StatefulDataLoader, whose own load_state_dict takes it"
        elif isinstance(state, Mapping) and "epoch" in state:
            hint = "; it was saved by an earlier asyncblend, whose states this one cannot read: begin the epoch anew"
        raise ConfigError(f"not a saved state of a {dataset}{hint}: {state!r:.200}")
    if state["format"] != _FORMAT:
        raise ConfigError(
            f"the saved state has format {state['format']!r}, and this asyncblend reads format {_FORMAT}; load it with "
            f"the version of asyncblend that saved it, or begin the epoch anew"
        )
    if state.get("dataset") != dataset:
        raise ConfigError(f"the saved state is of a {state.get('dataset')}, and this is a {dataset}")
    if state.keys() != {"format", "dataset", "of", "epoch", *names} or not isinstance(state["of"], Mapping):
        raise ConfigError(f"not a saved state of a {dataset}: {state!r:.200}")
    check_epoch("the saved epoch", state["epoch"])


def check_stream(state: Mapping[str, Any]) -> None:
    """Check the form of what a state says of a stream. What it says is checked by the pass that goes on from it.

    Raises:
        ConfigError: It says nothing that a pass has saved.
    """
    stream = state["stream"]
    good = stream is None or (isinstance(stream, Mapping) and isinstance(stream.get("params", {}), Mapping))
    if not good:
        raise ConfigError(f"not a saved state of a {state['dataset']}: {state!r:.200}")


def check_same(saved: Mapping[str, Any], own: Mapping[str, Any], dataset: str, *, prefix: str = "") -> None:
    """Check that a state was saved of the same that a dataset is now.

    Raises:
        ConfigError: It was not. The error names the value, and what to do.
    """
    for name, value in own.items():
        was = saved.get(name)
        if isinstance(value, Mapping):
            check_same(was if isinstance(was, Mapping) else {}, value, dataset, prefix=f"{prefix}{name}.")
        elif was != value and not name.endswith("_sha256"):
            advice = _ADVICE.get(name, "resume with the same value, or begin the epoch anew")
            raise ConfigError(f"the saved state has {prefix}{name}={was!r}, and this {dataset} has {value!r}; {advice}")


def warn_of_changes(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Log a warning, in one process, of files that have been changed since the state was saved."""
    worker = get_worker_info()
    if worker is not None and worker.id > 0:
        return
    for name, value in own.items():
        was = saved.get(name)
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            warn_of_changes(was, value)
        elif name.endswith("_sha256") and None not in (was, value) and was != value:
            file = name.removesuffix("_sha256")
            _log.warning(
                "The %s %s has been changed since the state was saved: samples from now on may differ from those before",
                *(file, own.get(file)),
            )
