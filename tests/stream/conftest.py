"""Streams of fakes to test with, and samples that wait until the test lets them go."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab
from asyncblend.testing import fake_blender

Make = Callable[..., ab.BlenderStream]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
NOISE = "def sample(task): return {'noise': task.rng.random(4), 'level': task.params.get('level')}"
DOUBLE = "def sample(task): return {'twice': 2 * task.index, 'level': task.params.get('level')}"


@pytest.fixture
def make(tmp_path: Path, write_script: Callable[..., Path]) -> Make:
    """Make a stream of fakes: `make(body, **options)`."""

    def make(body: str = NOISE, **options: Any) -> ab.BlenderStream:
        fake = fake_blender(tmp_path / "fake")
        stop = ab.Timeouts(stop=0.1)  # a sample that waits at its gate does not notice STOP
        return ab.BlenderStream(
            **{"script": write_script(body), "blender": fake, "instances": 2, "timeouts": stop, **options}
        )

    return make


class Gates:
    """Samples that wait until they are let go: each notes that it has begun, then waits for a file of its index."""

    body = """
import os, threading
def sample(task):
    open(f"{folder}/begun-{{task.index}}", "a").close()
    while not os.path.exists(f"{folder}/go-{{task.index}}") and not os.path.exists("{folder}/go-all"):
        threading.Event().wait(0.002)
    return {{"level": task.params.get("level")}}
"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.script = self.body.format(folder=folder)

    def let_go(self, *indices: int) -> None:
        for index in indices:
            (self._folder / f"go-{index}").touch()

    def let_all_go(self) -> None:
        (self._folder / "go-all").touch()

    def begun(self, index: int) -> bool:
        return (self._folder / f"begun-{index}").exists()

    async def until_begun(self, *indices: int) -> None:
        while not all(map(self.begun, indices)):
            await asyncio.sleep(0.002)

    async def next_is(self, index: int, held: Iterator[int]) -> int:
        """Let the samples that one Blender holds go, one by one, and check that `index` begins before the last of them.

        A message to the Blender may still be on its way when a sample ends, so the first ones prove nothing. It has a
        tenth of a second to arrive, then twice as long, and so on. Returns the number of samples that were let go.
        """
        current = next(held)
        for count, following in enumerate(held, 1):
            await asyncio.sleep(0.1 * 2 ** (count - 1))
            self.let_go(current)
            while not self.begun(following):
                if self.begun(index):
                    return count
                await asyncio.sleep(0.002)
            current = following
        pytest.fail(f"sample {index} waited for all that was held before")


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    folder = tmp_path / "gates"
    folder.mkdir()
    return Gates(folder)


@pytest.fixture
def make_sync(tmp_path: Path, write_script: Callable[..., Path]) -> Iterator[Callable[..., ab.SyncStream]]:
    """Make a started SyncStream of fakes, which is closed at the end: `make_sync(body, faults={}, start=True, **options)`."""
    streams: list[ab.SyncStream] = []

    def make(
        body: str = DOUBLE, faults: dict[str, Any] | None = None, *, start: bool = True, **options: Any
    ) -> ab.SyncStream:
        fake = fake_blender(tmp_path / f"fake{len(streams)}", **(faults or {}))
        script = write_script(body, name=f"script{len(streams)}.py")
        stop = ab.Timeouts(stop=0.1)  # a sample that waits at its gate does not notice STOP
        config = ab.StreamConfig(**{"script": script, "blender": fake, "instances": 2, "timeouts": stop, **options})
        streams.append(ab.BlenderStream(config).sync())
        if start:
            streams[-1].start()
        return streams[-1]

    yield make
    for stream in streams:
        assert Elsewhere(stream.close).result() is None


class Elsewhere:
    """A call in another thread; `result` returns what it returned or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._result: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.put(self._function())
        except BaseException as error:
            self._result.put(error)

    def result(self) -> Any:
        result = self._result.get(timeout=LIMIT)
        self._thread.join(LIMIT)
        return result


@pytest.fixture
def elsewhere() -> type[Elsewhere]:
    return Elsewhere
