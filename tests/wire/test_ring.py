"""The ring: memory that a Blender shares with its host, so that large arrays need not be sent."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import uvloop
from hypothesis import given
from hypothesis import strategies as st

import asyncblend as ab
from asyncblend.errors import ProtocolError
from asyncblend.fleet.process import ChildProcess
from asyncblend.testing import fake_blender
from asyncblend.wire import payload, protocol
from asyncblend.wire.ring import Ring, Slots
from tests.wire.samples import ABOUT

pytestmark = pytest.mark.skipif(Ring.create() is None, reason="this system has no memory to share without a name")
Write = Callable[..., Path]
LARGE = (100, 300, 3)


def noise(seed: int, shape: tuple[int, ...] = LARGE, dtype: str = "uint8") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)


class Pair:
    """Both sides of a ring, in one process."""

    def __init__(self) -> None:
        ring = Ring.create()
        assert ring is not None
        assert ring.descriptor is not None
        self.ring = ring
        slots = Slots.inherit(os.dup(ring.descriptor))
        assert slots is not None
        self.slots = slots

    def send(self, **values: Any) -> dict[str, Any]:
        """Return the values as they arrive in a frame."""
        parts = payload.encode_values(values, self.slots)
        self.parts = len(parts)
        message = protocol.encode(protocol.FRAME, ABOUT, parts)
        decoded = protocol.decode(message, self.ring.hold).values
        assert decoded is not None
        return decoded


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A ring with both its sides."""
    own = Pair()
    ring = weakref.ref(own.ring)
    yield own
    if left := ring():
        left.close_descriptor()


def used(ring: Ring) -> int:
    """Return the number of slots in use."""
    return sum(flag != 0 for flag in ring._map[:4096])


def test_large_arrays_arrive_without_being_sent(pair: Pair) -> None:
    """Large arrays of any dtype and shape arrive to the bit, small ones are sent as before, and all are read-only."""
    values: dict[str, Any] = {
        "image": noise(1),
        "depth": noise(2, (200, 300), "float32"),
        "ids": noise(3, (1, 5000, 1), "int64"),
        "mask": noise(4) > 100,
        "xy": noise(5, (8, 2), "float32"),
        "empty": np.empty((0, 7)),
        "nested": [{"a": noise(6)}, 3, None],
    }
    got = pair.send(**values)
    assert pair.parts == 3  # the tree and the two small arrays
    for name in ("image", "depth", "ids", "mask", "xy", "empty"):
        np.testing.assert_array_equal(got[name], values[name])
        assert got[name].dtype == values[name].dtype
        assert not got[name].flags.writeable
    np.testing.assert_array_equal(got["nested"][0]["a"], noise(6))
    with pytest.raises(ValueError, match="read-only"):
        got["image"][0] = 0


def test_a_slot_is_free_when_its_last_view_is_gone(pair: Pair) -> None:
    """A row, a tensor and another array of the same frame keep the slot in use until the last of them is gone."""
    got = pair.send(a=noise(1), b=noise(2))
    assert used(pair.ring) == 1
    row, b = got["a"][3:5].reshape(-1), got["b"]
    del got
    gc.collect()
    assert used(pair.ring) == 1
    del row
    assert used(pair.ring) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it is not writable
        tensor = torch.from_numpy(b)
    del b
    assert used(pair.ring) == 1
    np.testing.assert_array_equal(tensor.numpy(), noise(2))
    del tensor
    assert used(pair.ring) == 0


def test_a_slot_is_freed_by_any_thread(pair: Pair) -> None:
    """A slot is freed by the thread that drops the frame, which is not the thread that received it."""
    box = [pair.send(a=noise(1))]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert used(pair.ring) == 0


def test_no_frame_changes_while_it_is_held(pair: Pair) -> None:
    """A frame that is held stays as it was while others come and go, and their slots are used again."""
    kept = [pair.send(a=noise(i))["a"] for i in range(5)]
    for i in range(100):
        np.testing.assert_array_equal(pair.send(a=noise(1000 + i))["a"], noise(1000 + i))
    for i, array in enumerate(kept):
        np.testing.assert_array_equal(array, noise(i))
    assert len(pair.slots._slots) == 6
    assert used(pair.ring) == 5


def test_a_full_ring_sends_as_before(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that find no room are sent over the socket at once, and the ring is used again when it has room."""
    monkeypatch.setattr(pair.slots, "_end", (1 << 30) - 100_000)
    first = pair.send(a=noise(1))
    assert pair.parts == 1
    second = pair.send(a=noise(2))
    assert pair.parts == 2
    np.testing.assert_array_equal(second["a"], noise(2))
    del first
    pair.send(a=noise(3))
    assert pair.parts == 1


def test_arrays_of_another_size_find_room_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger arrays than before find room once the smaller ones are gone."""
    monkeypatch.setattr(pair.slots, "_end", (1 << 30) - 40_000)
    small = pair.send(a=noise(1, (20_000,)))
    large = pair.send(a=noise(2, (300_000,)))
    assert pair.parts == 2
    del small
    large = pair.send(a=noise(2, (300_000,)))
    assert pair.parts == 1
    np.testing.assert_array_equal(large["a"], noise(2, (300_000,)))


def test_what_is_larger_than_the_ring_is_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that is larger than the ring is sent, also when no slot is in use."""
    monkeypatch.setattr(pair.slots, "_map", mmap.mmap(-1, 50_000))
    assert pair.slots.put([np.zeros(60_000, np.uint8)]) is None


def test_frames_outlive_the_ring_and_its_blender(pair: Pair) -> None:
    """A frame's memory stays mapped for as long as the frame lives."""
    array = pair.send(a=noise(1))["a"]
    pair.ring.close_descriptor()
    del pair.slots
    pair.ring = None  # type: ignore[assignment]
    gc.collect()
    np.testing.assert_array_equal(array, noise(1))


@given(st.lists(st.tuples(st.integers(1, 200_000), st.integers(0, 9)), max_size=30))
def test_any_sizes_in_any_order(frames: list[tuple[int, int]]) -> None:
    """Arrays that are held stay what they were, in whatever order others are dropped."""
    pair = Pair()
    held: dict[int, tuple[int, Any]] = {}
    for i, (size, drop) in enumerate(frames):
        held[i] = (size, pair.send(a=np.full(size, i % 251, np.uint8))["a"])
        for key in [key for key in held if key % 10 == drop]:
            del held[key]
    for i, (size, array) in held.items():
        assert array.shape == (size,)
        assert (array == i % 251).all()
    pair.ring.close_descriptor()


@pytest.mark.parametrize(
    ("slot", "spec"),
    [
        (0, ["uint8", [10], -1]),
        (0, ["uint8", [10], (1 << 30) - 9]),
        (0, ["uint8", [10], "0"]),
        (0, ["uint8", [10], 1.5]),
        (0, ["uint8", [10], True]),
        (0, ["uint8", [2**40], 0]),
        (0, ["uint8", [-1], 0]),
        (0, ["object", [10], 0]),
        (0, ["uint8", [10], 0, 0]),
        (4096, ["uint8", [10], 0]),
        (-1, ["uint8", [10], 0]),
        ("x", ["uint8", [10], 0]),
        (None, ["uint8", [10], 0]),
    ],
)
def test_wrong_places_are_protocol_errors(slot: Any, spec: list[Any], pair: Pair) -> None:
    """A slot or a place that is outside the memory, or is no number, is a ProtocolError and takes no slot."""
    header = {**ABOUT, "tree": {"arrays": [spec], "slot": slot, "values": {"a": {"$": 0}}}}
    with pytest.raises(ProtocolError):
        protocol.decode(protocol.encode(protocol.FRAME, header), pair.ring.hold)
    assert used(pair.ring) == 0


def test_without_memory_a_place_is_a_protocol_error() -> None:
    """A message that names a place in shared memory is refused where there is no shared memory."""
    tree = {"arrays": [["uint8", [10], 0]], "slot": 0, "values": {"a": {"$": 0}}}
    message = protocol.encode(protocol.FRAME, {**ABOUT, "tree": tree})
    with pytest.raises(ProtocolError, match="of which there is none"):
        protocol.decode(message)
    del tree["slot"]
    message = protocol.encode(protocol.FRAME, {**ABOUT, "tree": tree})
    with pytest.raises(ProtocolError, match="of shared memory"):
        protocol.decode(message)


def test_it_cannot_be_resized(pair: Pair) -> None:
    """The memory cannot be resized, because shrinking it would kill every process that maps it."""
    assert pair.ring.descriptor is not None
    for size in (0, 1 << 31):
        with pytest.raises(PermissionError):
            os.ftruncate(pair.ring.descriptor, size)


def test_a_forked_process_frees_nothing(pair: Pair) -> None:
    """The copies of the frames in a forked process free no slot when that process ends."""
    array = pair.send(a=noise(1))["a"]
    child = os.fork()
    if child == 0:
        del array
        gc.collect()
        os._exit(used(pair.ring))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert used(pair.ring) == 1


def test_what_a_forked_process_holds_does_not_change(pair: Pair) -> None:
    """A forked process can read a frame long after its parent has dropped it."""
    array = pair.send(a=noise(1))["a"]
    go, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go, 1)
        os._exit(0 if np.array_equal(array, noise(1)) else 1)
    del array
    for i in range(5):
        pair.send(a=noise(10 + i))
    os.write(tell, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(go)
    os.close(tell)
    assert used(pair.ring) == 1


def test_slots_that_forks_take_are_counted(pair: Pair) -> None:
    """What was in use at a fork is lost until the Blender ends; the host knows about how much that is."""
    kept = [pair.send(a=noise(i, (1_000_000,))) for i in range(4)]
    assert pair.ring.lost == 0
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    kept.clear()
    assert 4_000_000 <= pair.ring.lost <= 8_000_000
    before = pair.ring.lost
    pair.send(a=noise(9))  # dropped at once
    assert pair.ring.lost == before


def test_a_slot_in_use_is_refused(pair: Pair) -> None:
    """A second message that names the slot of a frame in use is refused, and the frame stays as it is."""
    kept = pair.send(a=noise(1))["a"]
    (slot,) = (number for number, flag in enumerate(pair.ring._map[:4096]) if flag)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"slot {slot} is in use"):
            pair.ring.hold(slot)
    pair.send(a=noise(2))
    np.testing.assert_array_equal(kept, noise(1))
    del kept
    pair.ring.hold(slot)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_launch_is_no_fork(loop: str, pair: Pair, tmp_path: Path) -> None:
    """Starting a process leaves the ring as it is: a frame held meanwhile frees its slot when it is dropped."""
    held = [pair.send(a=noise(1))]

    async def launch() -> None:
        process = await ChildProcess.start(["true"], os.environ, tmp_path)
        assert await process.wait() == 0
        await process.stop(lambda: None, 0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(launch())
    held.clear()
    assert used(pair.ring) == 0


def test_a_frame_that_cannot_be_sent_keeps_no_slot(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that proves too large after its arrays were placed gives the slot back."""
    monkeypatch.setattr(payload, "MAX_TREE", 1000)
    with pytest.raises(payload.Unsendable):
        pair.send(a=noise(1), text="x" * 2000)
    assert used(pair.ring) == 0


def test_another_file_under_that_number_is_not_taken(tmp_path: Path) -> None:
    """A descriptor that is not the ring's is refused: a wrapper script may close descriptors and open others."""
    assert Slots.inherit(None) is None
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert Slots.inherit(descriptor) is None
    os.close(descriptor)
    assert Slots.inherit(descriptor) is None


# -- in a stream ------------------------------------------------------------------------------------------------------

BODY = """
import os
def sample(task):
    return {"image": task.rng.integers(0, 255, (120, 160, 3), np.uint8), "xy": np.zeros(3), "pid": os.getpid()}
"""


def expected(index: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([0, index]).integers(0, 255, (120, 160, 3), np.uint8)


@pytest.mark.parametrize("shared", [True, False])
async def test_frames_of_a_stream(shared: bool, kind: Any, write_script: Write) -> None:
    """Frames are the same with and without shared memory, which is mapped only when asked for."""
    async with (
        asyncio.timeout(110),
        ab.BlenderStream(
            script=write_script(BODY), blender=kind.blender, instances=2, length=60, shared_memory=shared
        ) as stream,
    ):
        frames = [frame async for frame in stream]
        for frame in frames:
            np.testing.assert_array_equal(frame["image"], expected(frame.index))
        process = psutil.Process(frames[0]["pid"])
        mapped = [region.path for region in process.memory_maps() if "memfd:asyncblend" in region.path]
        assert bool(mapped) == shared
    for frame in frames:
        np.testing.assert_array_equal(frame["image"], expected(frame.index))


async def test_a_wrapper_that_closes_descriptors_costs_only_speed(tmp_path: Path, write_script: Write) -> None:
    """Behind a wrapper that closes the ring's descriptor, as container tools do, frames arrive over the socket."""
    fake = fake_blender(tmp_path / "fake")
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, sys\nos.closerange(3, 64)\nos.execv({str(fake)!r}, [{str(fake)!r}, *sys.argv[1:]])\n"
    )
    wrapper.chmod(0o755)
    async with (
        asyncio.timeout(110),
        ab.BlenderStream(script=write_script(BODY), blender=wrapper, instances=1, length=5) as stream,
    ):
        async for frame in stream:
            np.testing.assert_array_equal(frame["image"], expected(frame.index))


async def test_memory_is_bounded_by_what_is_held(tmp_path: Path, write_script: Write) -> None:
    """Two thousand frames use the memory of a few."""
    script = write_script("def sample(task): return {'image': np.full((100, 100, 3), task.index % 256, np.uint8)}")
    async with (
        asyncio.timeout(110),
        ab.BlenderStream(
            script=script, blender=fake_blender(tmp_path / "fake"), instances=1, length=2000, queue_size=4
        ) as stream,
    ):
        async for frame in stream:
            assert (frame["image"] == frame.index % 256).all()
        rss = sum(
            region.rss for region in psutil.Process().memory_maps() if region.path.startswith("/memfd:asyncblend")
        )
        assert 0 < rss < 12 * 32_768


def test_the_memory_has_no_name() -> None:
    """A program that is killed leaves no file in /dev/shm, because its shared memory never had a name there."""
    code = """
import os
from asyncblend.wire.ring import Ring
ring = Ring.create()
print(open("/proc/self/maps").read(), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -9, done.stderr
    assert "memfd:asyncblend" in done.stdout
    assert "/dev/shm" not in done.stdout
