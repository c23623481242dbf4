"""Recordings to test with, made by the writer itself, without a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncblend.recording.codec import Images, encode
from asyncblend.recording.writer import ShardSize, Writer

ABOUT = {"seed": 0, "script": "scene.py", "script_sha256": "0" * 64}


def values_of(index: int) -> dict[str, Any]:
    """Return the values of sample `index`."""
    rng = np.random.default_rng(index)
    return {
        "image": rng.integers(0, 256, (6, 8, 3), np.uint8),
        "depth": rng.random((6, 8)).astype(np.float32),
        "name": f"sample {index}",
    }


def files_of(index: int) -> dict[str, bytes]:
    """Return the values of sample `index` as files."""
    return encode(values_of(index), index=index, instance=index % 2, params={"level": index / 4}, images=Images())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "recording"


@pytest.fixture
def written(folder: Path) -> Callable[..., Path]:
    """A function that writes samples into the folder: `written(range(10), shard_size=4)`."""

    def write(indices: Iterable[int], shard_size: int | str = 4, **about: Any) -> Path:
        writer = Writer(folder, {**ABOUT, **about}, ShardSize(shard_size))
        writer.open()
        try:
            for index in indices:
                writer.add(index, files_of(index))
        finally:
            writer.close()
        return folder

    return write
