"""The fleet of a BlenderDataset: how long it lives, `render` and `flush`, and its errors."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import asyncblend as ab
from tests.waiting import gone, until

pytestmark = [
    # Python 3.12 and up advise against fork in a process with threads; torch against more workers than cores.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Make = Callable[..., ab.BlenderDataset]

LIMIT = 60.0  # seconds; the bound of failure of every wait here
FAST = ab.RestartPolicy(backoff=0.01)


def indices(items: list[Any]) -> list[int]:
    return sorted(item["index"] for item in items)


# -- the fleet between iterations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["break", "exception", "generator"])
def test_the_fleet_stays_warm_however_an_iteration_ends(how: str, make: Make) -> None:
    """The next iteration is complete, on the same Blenders; after `close` it has new ones."""
    dataset = make(length=40, queue_size=4, instances=1)
    pids = set()

    def use() -> None:
        for item in dataset:
            pids.add(item["pid"])
            if how == "exception":
                raise ArithmeticError
            break

    for _ in range(3):
        if how == "exception":
            with pytest.raises(ArithmeticError):
                use()
        elif how == "generator":
            iterator: Any = iter(dataset)
            next(iterator)
            iterator.close()
        else:
            use()
    items = list(dataset)
    assert indices(items) == list(range(40))
    pids.update(item["pid"] for item in items)
    (pid,) = pids
    assert not gone(pid)
    dataset.close()
    assert gone(pid)
    dataset.close()
    items = list(dataset)
    assert indices(items) == list(range(40))
    assert items[0]["pid"] != pid


def test_a_second_iteration_ends_the_first(make: Make) -> None:
    """The older iteration raises StreamClosed and takes no frame of the newer one."""
    dataset = make(length=12, queue_size=4)
    first, second = iter(dataset), iter(dataset)
    next(first)
    taken = [next(second)]
    with pytest.raises(ab.StreamClosed, match="another iteration"):
        list(first)
    assert indices(taken + list(second)) == list(range(12))


def test_a_dropped_dataset_ends_its_fleet(make: Make) -> None:
    """Garbage collection ends it, also while an iterator that is dropped with it is in mid-epoch."""
    dataset = ab.BlenderDataset(make(instances=1).config)
    iterator = iter(DataLoader(dataset, batch_size=2))
    (pid, _) = next(iterator)["pid"].tolist()
    del dataset
    gc.collect()
    assert not gone(pid)  # the iterator has it still
    assert len(next(iterator)["index"]) == 2
    del iterator
    gc.collect()
    assert gone(pid)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("how", ["break", "exception"])
@pytest.mark.exhaustive
def test_leaving_an_epoch_of_workers(how: str, persistent: bool, make: Make, load: Any) -> None:
    """No Blender outlives the loader's iterator; persistent workers give the next epoch complete."""
    dataset = make(length=30, queue_size=4)
    pids = []
    with load(dataset, 2, persistent_workers=persistent) as loading:
        try:
            for item in loading:
                pids.append(item["pid"])
                if len(pids) == 3:
                    if how == "exception":
                        raise ArithmeticError
                    break
        except ArithmeticError:
            pass
        items = list(loading)
        assert indices(items) == list(range(30))
        pids += [item["pid"] for item in items]
        assert len(set(pids)) <= 2 or not persistent
    until(lambda: all(gone(pid) for pid in pids))


def test_stats_of_the_process_that_iterates(make: Make) -> None:
    """They are the stream's, also after `close`."""
    dataset = make(length=8)
    list(dataset)
    for _ in range(2):
        stats = dataset.stats()
        assert stats is not None
        assert (stats.delivered, stats.restarts, stats.queued) == (8, 0, 0)
        dataset.close()


# -- errors -------------------------------------------------------------------------------------------------------

FAILS = "def sample(task):\n    if task.index == 3: raise ValueError('no cube')\n    return {}"
# A Blender that dies takes what has not left it along: it waits until the good samples have arrived.
CRASHES = """
import os, threading
def sample(task):
    if task.index == 2:
        while not os.path.exists(os.path.join(os.path.dirname(__file__), os.pardir, "gate")): threading.Event().wait(0.005)
        os._exit(4)
    return {}
"""
ERRORS: list[Any] = [
    pytest.param(ab.SampleError, "no cube", 3, {"body": FAILS}, id="sample"),
    pytest.param(ab.InstanceExited, "status 9", 0, {"faults": {"exit_at_start": 9}}, id="exit"),
    pytest.param(ab.InstanceExited, "no scene", 0, {"body": "raise OSError('no scene')"}, id="script"),
    pytest.param(
        ab.StartTimeout,
        r"did not call serve within 0\.3 s",
        0,
        {"faults": {"never_ready": True}, "timeouts": ab.Timeouts(start=0.3)},
        id="start",
    ),
    pytest.param(
        ab.CrashLoop, "status 4", 2, {"body": CRASHES, "restart": ab.RestartPolicy(max_restarts=0)}, id="crash"
    ),
    pytest.param(
        ab.CrashLoop,
        r"made no frame for 3 s",
        2,
        {"faults": {"hang_after": 2}, "timeouts": ab.Timeouts(frame=3), "restart": ab.RestartPolicy(max_restarts=0)},
        id="hang",
    ),
    pytest.param(ab.BlenderNotFound, "does not exist", 0, {"blender": "/nowhere/blender"}, id="blender"),
    pytest.param(ab.ConfigError, "missing.py", 0, {"script": "missing.py"}, id="config"),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("error", "message", "good", "options"), ERRORS)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_an_error_reaches_the_loop_as_itself(
    error: type[Exception],
    message: str,
    good: int,
    options: dict[str, Any],
    workers: int,
    make: Make,
    tmp_path: Path,
    load: Any,
) -> None:
    """It comes after the good samples, from this process and from a worker alike: its type, message and data."""
    dataset = make(**{"instances": 1, "ordered": True, "length": 10, **options})
    seen = []
    with load(dataset, workers) as loading, pytest.raises(error, match=message) as caught:
        for item in loading:
            seen.append(item["index"])
            if len(seen) == good:
                (tmp_path / "gate").touch()
    assert caught.type is error
    assert seen == list(range(good))
    assert "Original Traceback" not in str(caught.value)
    assert (
        getattr(caught.value, "__notes__", []) == [f"Caught {error.__name__} in DataLoader worker process 0."] * workers
    )
    if isinstance(caught.value, ab.SampleError):
        assert caught.value.index == 3
        assert "no cube" in caught.value.traceback
    if isinstance(caught.value, ab.InstanceError):
        assert caught.value.instance == 0
    if isinstance(caught.value, ab.InstanceExited):
        assert caught.value.returncode in (1, 9)
        assert ("no scene" if caught.value.returncode == 1 else "exits at its start") in caught.value.log_tail
    if isinstance(caught.value, ab.CrashLoop):
        kind = ab.FrameTimeout if "no frame" in message else ab.InstanceExited
        assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize("workers", [0, 1])
def test_what_params_raise_reaches_the_loop(workers: int, make: Make, load: Any) -> None:
    """The user's own exception comes after the good samples."""

    def params(index: int) -> dict[str, Any]:
        if index == 2:
            raise LookupError("no curriculum")
        return {}

    seen = []
    with (
        load(make(params=params, instances=1, prefetch=1), workers) as loading,
        pytest.raises(LookupError, match="no curriculum"),
    ):
        for item in loading:
            seen.append(item["index"])
    assert seen == [0, 1]


def test_an_error_of_one_iteration_leaves_the_fleet(make: Make) -> None:
    """After a SampleError the next iteration runs on the same Blenders."""
    dataset = make(
        "import os\ndef sample(task):\n    if task.index == 3: raise ValueError\n    return {'pid': os.getpid()}",
        instances=1,
        length=6,
    )
    pids = set()
    with pytest.raises(ab.SampleError):
        for item in dataset:
            pids.add(item["pid"])
    dataset.set_epoch(1)
    items = list(dataset)
    assert indices(items) == list(range(6, 12))
    assert {item["pid"] for item in items} == pids


def test_iterating_after_a_crash_loop_starts_another_fleet(make: Make, tmp_path: Path) -> None:
    """A dataset whose fleet is lost can be iterated again."""
    mended = tmp_path / "mended"
    body = f"""
import os
def sample(task):
    if task.index == 2 and not os.path.exists({str(mended)!r}): os._exit(3)
    return {{}}
"""
    dataset = make(body, instances=1, length=6, restart=ab.RestartPolicy(max_restarts=0))
    with pytest.raises(ab.CrashLoop):
        list(dataset)
    mended.touch()
    assert indices(list(dataset)) == list(range(6))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.exhaustive
def test_a_blender_killed_in_mid_epoch_is_replaced(workers: int, make: Make, load: Any) -> None:
    """Each index still comes exactly once."""
    dataset = make(length=40, queue_size=4, restart=FAST)
    with load(dataset, workers) as loading:
        iterator = iter(loading)
        first = next(iterator)
        os.kill(first["pid"], signal.SIGKILL)
        assert indices([first, *iterator]) == list(range(40))


def test_a_killed_worker_is_torchs_error(make: Make, load: Any) -> None:
    """torch raises a RuntimeError, and the worker's Blenders end with it."""
    # No arrays: torch fetches their memory from the worker.
    body = "import os\ndef sample(task): return {'pid': os.getpid(), 'host': os.getppid()}"
    with load(make(body), 2) as loading:
        iterator = iter(loading)
        items = [next(iterator) for _ in range(4)]
        pids = {item["pid"]: item["host"] for item in items}
        dead = items[0]["host"]
        os.kill(dead, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
            while True:
                next(iterator)
        until(lambda: all(gone(pid) for pid, host in pids.items() if host == dead))
    until(lambda: all(gone(pid) for pid in pids))


# -- a fleet here, workers beside it ------------------------------------------------------------------------------

BESIDE = """
import asyncio, os, signal, sys
import uvloop
from torch.utils.data import DataLoader
import asyncblend as ab

if __name__ == "__main__":
    script, fake = sys.argv[1:]
    policy = ab.RestartPolicy(backoff=0.01)
    dataset = ab.BlenderDataset(script=script, blender=fake, instances=1, length=40, queue_size=4, restart=policy)
    items = iter(dataset)
    first = next(items)
    assert isinstance(dataset._own._stream._thread._loop, uvloop.Loop)

    handler = signal.getsignal(signal.SIGCHLD)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    beside = list(loader)
    assert signal.getsignal(signal.SIGCHLD) != handler  # what uvloop misses exits after
    assert sorted(item["index"] for item in beside) == list(range(40)), beside
    assert first["pid"] not in {item["pid"] for item in beside}

    os.kill(first["pid"], signal.SIGKILL)
    rest = list(items)
    assert sorted(item["index"] for item in [first, *rest]) == list(range(40))
    assert {item["pid"] for item in rest} != {first["pid"]}
    assert dataset.stats().restarts == 1
    dataset.close()
    print("done")
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_fleet_beside_workers_notices_a_death(make: Make, tmp_path: Path) -> None:
    """On uvloop, with torch's SIGCHLD handler in place, a dead Blender is replaced, and nothing is left unclosed."""
    pytest.importorskip("uvloop")
    config = make().config
    (tmp_path / "beside.py").write_text(BESIDE)
    done = subprocess.run(
        [
            sys.executable,
            *("-W", "default::ResourceWarning"),
            str(tmp_path / "beside.py"),
            str(config.script),
            str(config.blender),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "ResourceWarning" not in done.stderr


# -- render and flush --------------------------------------------------------------------------------------------


def test_render_before_while_and_after_iterating(make: Make) -> None:
    """It starts the fleet, and gives the same item for the same index and params, whatever else is going on."""
    dataset = make(length=20, queue_size=3, seed=4)
    noises = [dataset.render(7)["noise"].tolist()]
    assert dataset.state_dict()["stream"]["watermark"] == 0  # rendering is no iteration
    iterator = iter(dataset)
    items = [next(iterator)]
    for _ in range(2):
        item = dataset.render(7)
        noises.append(item["noise"].tolist())
        assert (type(item["index"]), item["index"]) == (int, 7)
        item["noise"] += 1  # its memory is the user's own
    items += iterator
    assert indices(items) == list(range(20))
    noises += [dataset.render(7)["noise"].tolist(), *(i["noise"].tolist() for i in items if i["index"] == 7)]
    assert noises == [noises[0]] * 5
    assert dataset.render(10**12)["index"] == 10**12
    pids = {item["pid"] for item in [*items, dataset.render(1)]}
    stats = dataset.stats()
    assert stats is not None
    assert len(pids) <= len(stats.frames)  # the same Blenders, of which one may have made all items
    assert (stats.delivered, stats.restarts) == (26, 0)
    dataset.close()
    assert dataset.render(7)["noise"].tolist() == noises[0]
    assert dataset.render(1)["pid"] not in pids


def test_render_with_params_and_a_transform(make: Make) -> None:
    """Params are the caller's, or drawn as the config says; the transform makes the item; there is no batch axis."""
    body = "def sample(task): return {'level': task.params.get('level'), 'x': np.zeros(3)}"
    dataset = make(body, params=lambda index: {"level": index}, transform=lambda item: (item["level"], item["x"].shape))
    assert dataset.render(5) == (5, (3,))
    assert dataset.render(5, {"level": "own"}) == ("own", (3,))
    batched = make(body, batch_size=4, length=4)
    assert batched.render(2, {"level": 9})["x"].shape == (3,)
    assert [batch["x"].shape for batch in batched] == [(4, 3)]


def test_render_raises_what_goes_wrong(make: Make) -> None:
    """A bad sample is a SampleError even where they are skipped; a wrong argument is named; so is a failed start."""
    dataset = make(FAILS, length=6, on_bad_sample="skip")
    iterator = iter(dataset)
    items = [next(iterator)]
    with pytest.raises(ab.SampleError, match="no cube") as caught:
        dataset.render(3)
    assert caught.value.index == 3
    for arguments, message in (((-1,), "got -1"), (("a",), "got"), ((1, 5), "params must be")):
        with pytest.raises(ab.ConfigError, match=message):
            dataset.render(*arguments)
    assert indices([*items, *iterator]) == [0, 1, 2, 4, 5]
    for options, error in (
        ({"faults": {"exit_at_start": 9}}, ab.InstanceExited),
        ({"blender": "/nowhere/blender"}, ab.BlenderNotFound),
        ({"script": "nowhere.py"}, ab.ConfigError),
    ):
        broken = make(**options)
        for _ in range(2):
            with pytest.raises(error):
                broken.render(1)


def test_render_here_while_workers_iterate(make: Make, load: Any) -> None:
    """The main process has a fleet of its own for it, which stays warm."""
    dataset = make(length=20)
    first = dataset.render(100)
    with load(dataset, 2) as loading:
        items, here = [], [first]
        for item in loading:
            items.append(item)
            here.append(dataset.render(100 + len(here)))
    assert indices(items) == list(range(20))
    assert indices(here) == list(range(100, 121))
    assert {item["host"] for item in here} == {os.getpid()}
    assert os.getpid() not in {item["host"] for item in items}
    assert len({item["pid"] for item in here}) <= 2
    dataset.close()


def test_render_in_a_worker(make: Make, load: Any) -> None:
    """A worker renders with its own Blenders, also between its items; one without a Blender says so."""

    def transform(item: dict[str, Any]) -> dict[str, Any]:
        if item["index"] < 100:
            other = dataset.render(100 + item["index"])
            assert (other["index"], other["host"]) == (100 + item["index"], item["host"])
        return item

    def render(worker: int) -> None:
        assert dataset.render(500)["index"] == 500

    dataset = make(length=10, transform=transform)
    assert indices(load(dataset, 2).items()) == list(range(10))
    dataset = make(length=4, instances=1)
    with (
        load(dataset, 2, worker_init_fn=render) as loading,
        pytest.raises(ab.ConfigError, match="no Blender to render"),
    ):
        list(loading)


LEVEL = """
import os, threading
def sample(task):
    open(f"{folder}/begun-{{task.index}}", "a").close()
    while not os.path.exists("{folder}/gate"): threading.Event().wait(0.002)
    return {{"level": task.params["level"]}}
"""


def test_flush_lets_changed_params_take_hold(make: Make, tmp_path: Path) -> None:
    """All samples but those that Blenders are at get new params; each index comes once; without an iteration it is 0."""
    level = 0
    dataset = make(
        LEVEL.format(folder=tmp_path), instances=1, prefetch=4, length=8, params=lambda index: {"level": level}
    )
    assert dataset.flush() == 0
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(dataset))
    thread.start()
    until((tmp_path / "begun-0").exists)
    until(lambda: dataset.stats().rendering == 4)  # type: ignore[union-attr]
    level = 1
    assert dataset.flush() == 3
    (tmp_path / "gate").touch()
    thread.join(LIMIT)
    assert {item["index"]: item["level"] for item in got} == {0: 0, **dict.fromkeys(range(1, 8), 1)}
    assert dataset.flush() == 0
    dataset.close()
    assert dataset.flush() == 0


@pytest.mark.parametrize("how", ["break", "exception"])
def test_a_loop_that_is_left_early_frees_its_slots(how: str, make: Make) -> None:
    """Nothing of it is rendered or kept any more, and the state says what the loop consumed."""
    dataset = make(queue_size=4)
    with contextlib.suppress(ArithmeticError):
        for _ in dataset:
            until(lambda: dataset.stats().queued == 4)  # type: ignore[union-attr]
            if how == "exception":
                raise ArithmeticError
            break
    until(lambda: dataset.stats().queued + dataset.stats().rendering == 0)  # type: ignore[union-attr]
    state = dataset.state_dict()["stream"]
    assert state["watermark"] + len(state["above"]) == 1
    stats = dataset.stats()
    assert stats is not None
    assert stats.delivered == 1
    assert set(stats.state.values()) <= {"idle", "starting"}
