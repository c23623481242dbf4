"""Datasets of fakes to test with, and DataLoaders over them."""

from __future__ import annotations

import multiprocessing.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import asyncblend as ab
from asyncblend.testing import fake_blender

LIMIT = 60.0  # seconds; the bound of failure of every wait here
ABOUT = """
import os, sys
def sample(task):
    return {
        "pid": os.getpid(), "host": os.getppid(), "instance": task.instance,
        "argv": sys.argv[1:], "noise": task.rng.random(3),
    }
"""


@pytest.fixture(scope="module", autouse=True)
def _multiprocessings_own_folder() -> None:
    """Make it before a test does: it is made once a process, and must not be in a folder that is removed with a test."""
    multiprocessing.util.get_temp_dir()


@pytest.fixture
def make(tmp_path: Path, write_script: Callable[..., Path]) -> Iterator[Callable[..., ab.BlenderDataset]]:
    """Make a dataset of fakes, which is closed at the end: `make(body, faults={}, **options)`."""
    made: list[ab.BlenderDataset] = []

    def make(body: str = ABOUT, faults: dict[str, Any] | None = None, **options: Any) -> ab.BlenderDataset:
        fake = fake_blender(tmp_path / f"fake{len(made)}", **(faults or {}))
        # All have one name, because a state belongs to the name of its script.
        script = write_script(body, name=f"fake{len(made)}/script.py")
        made.append(ab.BlenderDataset(**{"script": script, "blender": fake, "instances": 2, **options}))
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


class Loading:
    """A DataLoader over a dataset, which makes no batches; `with` ends its workers."""

    def __init__(self, dataset: ab.BlenderDataset, workers: int, start: str = "fork", **options: Any) -> None:
        if workers:
            options.update(multiprocessing_context=start, timeout=LIMIT)
        self._loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, **options)
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Any]:
        self._iterator = iter(self._loader)
        return iter(self._iterator)

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *error: object) -> None:
        # When an exception's traceback holds the iterator, torch itself takes five seconds to end its workers.
        if hasattr(self._iterator, "_shutdown_workers"):
            self._iterator._shutdown_workers()

    def items(self) -> list[Any]:
        with self:
            return list(self)


@pytest.fixture
def load() -> type[Loading]:
    """Load a dataset: `load(dataset, workers, start)`."""
    return Loading
