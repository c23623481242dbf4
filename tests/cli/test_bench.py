"""`asyncblend bench`: which fleets it tries, how they take turns, and which one it advises."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from asyncblend.cli.bench import blenders as holding
from asyncblend.cli.bench import search as searching
from asyncblend.cli.bench.blenders import Blenders
from asyncblend.cli.bench.judging import Trial, Turn, best, fastest, staying
from asyncblend.cli.bench.search import Found, Search
from asyncblend.cli.bench.settings import Setting, gpus_here, settings
from asyncblend.cli.bench.shown import figures, toml, verdict
from asyncblend.cli.bench.usage import Used, available, memory, sessions
from asyncblend.config import StreamConfig
from asyncblend.errors import ConfigError, InstanceExited, SampleError
from asyncblend.stream.stream import BlenderStream
from asyncblend.testing import fake_blender

LIMIT = 100

ONE_AT_A_TIME = """
import fcntl, pathlib, time
from asyncblend import blender as bl

folder = pathlib.Path(__file__).parent
lock = open(folder / "lock", "w")

def sample(task):
    times = 5 if (folder / "slow").exists() else 1
    time.sleep(0.03 * times)
    fcntl.flock(lock, fcntl.LOCK_EX)
    time.sleep(0.06 * times)
    fcntl.flock(lock, fcntl.LOCK_UN)
    return {"n": task.index}

bl.serve(sample)
"""
"""What takes most of the time can be done by one process at a time: two are faster than one, and three than two are not."""

NOTING = """
import os, pathlib
from asyncblend import blender as bl

noted = pathlib.Path(__file__).with_name("noted")

def sample(task):
    if task.index < 10**9:
        with noted.open("a") as file:
            print(os.getpid(), task.index, file=file)
    return {"n": task.index}

bl.serve(sample)
"""
NOT_NOTED = 10**9
"""The index of a sample that `NOTING` does not note."""

BY_GPU = """
import os, time
from asyncblend import blender as bl

def sample(task):
    time.sleep(0.02 if os.environ.get("CUDA_VISIBLE_DEVICES") in ("6", "7") else 0.2)
    return {"n": task.index}

bl.serve(sample)
"""

NO_GPU = """
import os
from asyncblend import blender as bl

if os.environ.get("CUDA_VISIBLE_DEVICES") == "7":
    raise RuntimeError("nothing renders on 7")
bl.serve(lambda task: {"n": task.index})
"""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on whether this machine has one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], StreamConfig]:
    """Return the config of a script's text, for a fake Blender."""

    def written(text: str) -> StreamConfig:
        script = tmp_path / "scene.py"
        script.write_text(text)
        return StreamConfig(script=script, blender=fake_blender(tmp_path / "fake"))

    return written


def trials(**rates: Sequence[float]) -> list[Trial]:
    """Return trials of fleets such as `_2x1`, with the rates of the rounds."""
    made = []
    for name, own in rates.items():
        instances, threads = map(int, name.strip("_").split("x"))
        made.append(Trial(Setting(instances, threads), {n: Turn(rate) for n, rate in enumerate(own, 1)}))
    return made


def advised(found: tuple[Trial, list[Trial]]) -> list[str]:
    """Return the fleet to advise, and then those that are as fast."""
    chosen, level = found
    return [str(one.setting) for one in (chosen, *level)]


# -- which fleets are tried -------------------------------------------------------------------------------------------


def test_all_cores_have_work_once_and_twice() -> None:
    """With one thread each, one more Blender than there are cores is tried too."""
    assert settings(count=1) == [(1, 1, False), (2, 1, False)]
    assert [one[:2] for one in settings(count=2)] == [(1, 2), (2, 2), (2, 1), (3, 1), (4, 1)]
    assert [one[:2] for one in settings(count=6)] == [(1, 6), (2, 6), (2, 3), (4, 3), (6, 1), (7, 1), (12, 1)]


def test_numbers_that_are_asked_for() -> None:
    """Instances have the cores divided among them, or all of them each; threads have so many instances as fit."""
    assert [one[:2] for one in settings([3], [1, 5], count=2)] == [(3, 1), (3, 5)]
    assert [one[:2] for one in settings([1, 2], count=2)] == [(1, 2), (2, 1), (2, 2)]
    assert [one[:2] for one in settings(threads=[2], count=8)] == [(4, 2), (8, 2)]
    with pytest.raises(ConfigError, match="at least 1"):
        settings([0])


def test_up_to_four_blenders_share_a_gpu() -> None:
    """Beside those on the processor, unless GPUs were asked for."""
    assert settings(gpus=2, processor=False, count=16) == [(n, 4, True) for n in (2, 4, 6, 8)]
    assert settings([1], [3], gpus=1, count=16) == [(1, 3, False), (1, 3, True)]
    assert str(Setting(1, 3, True)) == "1 x 3 threads, GPU"


def test_nvidias_gpus_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use, if there is a driver."""
    assert gpus_here(tmp_path / "no driver") == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert gpus_here(tmp_path) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8a")
    assert gpus_here(tmp_path) == ["3", "GPU-8a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus_here(tmp_path) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus_here(tmp_path) == ["0", "1"]


# -- which one is best ------------------------------------------------------------------------------------------------


def test_of_the_fast_ones_the_one_with_the_fewest_blenders() -> None:
    """Within 5 % of the fastest. Then it is the one with fewer threads."""
    some = trials(_1x2=[50] * 3, _2x1=[96] * 3, _2x2=[97] * 3, _4x1=[100] * 3, _8x1=[90] * 3)
    assert advised(best(some)) == ["2 x 1 thread", "2 x 2 threads", "4 x 1 thread"]


def test_what_may_be_noise_does_not_take_memory() -> None:
    """A fleet that is up to 10 % slower counts as fast if it was the faster one in a third of the rounds."""
    noisy = trials(_1x1=[92, 101, 92, 91, 103, 92], _2x1=[100] * 6)
    assert advised(best(noisy)) == ["1 x 1 thread", "2 x 1 thread"]
    steady = trials(_1x1=[92, 101, 92, 91, 93, 92], _2x1=[100] * 6)
    assert advised(best(steady)) == ["2 x 1 thread"]


def test_a_gpu_is_left_to_training() -> None:
    """Where rendering on it is not faster."""
    some = [Trial(Setting(1, 4, gpu), {1: Turn(10.0)}) for gpu in (True, False)]
    assert best(some)[0].setting == Setting(1, 4, False)


@pytest.mark.parametrize("slow", [*itertools.product(range(3), repeat=3)])
def test_one_slow_turn_changes_nothing(slow: tuple[int, int, int]) -> None:
    """Each of three fleets has one slow turn, in whichever round: the best one stays, whatever the others did then."""
    some = trials(_1x1=[80] * 5, _2x1=[100] * 5, _3x1=[99] * 5)
    for one, number in zip(some, slow, strict=True):
        one.turns[number + 1] = Turn(one.rate / 10)
    assert fastest(some) is not some[0]
    assert best(some)[0].setting == Setting(2, 1)


def test_slow_rounds_change_nothing() -> None:
    """Most rounds were slow for all. In medians of rates the slow fleet, dropped later, would not have been the slower."""
    some = trials(_1x1=[50, 5, 5.1, 5, 5], _2x1=[100, 10, 10.2, 10, 10])
    assert fastest(some) is some[1]
    assert some[0].ratio(some[1]) == 0.5


def test_none_is_dropped_before_the_third_round() -> None:
    """In two rounds a single slow turn could decide. Then it is those that are clearly slower."""
    some = trials(_1x1=[50, 50, 50], _2x1=[100, 10, 100], _3x1=[90, 90, 90])
    early = [Trial(one.setting, {n: one.turns[n] for n in (1, 2)}) for one in some]
    assert staying(early) == early
    assert staying(some) == some[1:]


# -- what is taken ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="it is read from /proc")
def test_the_processor_time_and_the_memory_of_children() -> None:
    """Of those that lead a session, as every Blender does."""
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    used = Used()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        assert sessions()[child.pid] >= 0.25
        assert memory([child.pid]) > 2**20
        share, others = used.shares()
        assert share is not None
        assert share > 0
        assert others >= 0
        child.communicate(b"\n")
    assert memory([child.pid]) == 0


def test_a_containers_memory_counts(tmp_path: Path) -> None:
    """What can be used is the less of what the machine and what the container has; files in memory can make room."""
    proc, group = tmp_path / "proc", tmp_path / "group"
    assert available(proc, group) is None
    proc.mkdir()
    group.mkdir()
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert available(proc, group) == 5000 * 1024
    (group / "memory.current").write_text("4000\n")
    (group / "memory.stat").write_text("anon 3000\ninactive_file 500\n")
    (group / "memory.max").write_text("max\n")
    assert available(proc, group) == 5000 * 1024
    (group / "memory.max").write_text("10000\n")
    assert available(proc, group) == 6500


# -- turns of real processes ------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_a_slow_minute_does_not_change_the_advice(config: Callable[[str], StreamConfig], tmp_path: Path) -> None:
    """Three Blenders are not faster than two. That two had a slow turn, and then all a slow round, does not matter."""
    slow = tmp_path / "slow"

    def turn_begins(number: int, setting: Setting) -> None:
        slow.unlink(missing_ok=True)
        if number == 3 or (number == 2 and setting.instances == 2):
            slow.touch()

    tried = [Setting(n, 1) for n in (3, 1, 2)]
    found = await Search(config(ONE_AT_A_TIME), tried, 4.5, turn_begins=turn_begins).run()
    assert found.best.setting == Setting(2, 1)
    assert [one.setting for one in found.level] == [Setting(3, 1)]
    assert [one.setting for one in found.trials] == tried
    assert len(found.best.turns) >= 3
    assert all(len(one.turns) >= 3 for one in found.trials)


class Turns:
    """Notes which Blenders rendered which samples in each turn, when the next one begins."""

    def __init__(self, noted: Path) -> None:
        self._noted, self._read = noted, 0
        self._now: tuple[int, Setting] | None = None
        self.seen: list[tuple[int, Setting, set[str], list[int]]] = []
        """Of each turn: the round, the fleet, the Blenders and the samples."""

    def begins(self, number: int, setting: Setting | None) -> None:
        lines = self._noted.read_text().splitlines()
        if self._now is not None:
            pairs = [line.split() for line in lines[self._read :]]
            self.seen.append((*self._now, {pid for pid, _ in pairs}, [int(index) for _, index in pairs]))
        self._read, self._now = len(lines), setting and (number, setting)


async def test_blenders_that_have_no_turn_wait(
    config: Callable[[str], StreamConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fleet renders with its own number of Blenders, which fleets share; and all the same samples, in their order."""
    rested = Blenders._rest

    async def rest(self: Blenders, streams: Sequence[BlenderStream]) -> None:
        """A sample that was begun just before its revocation came belongs to this turn: one that is not noted ends it."""
        await rested(self, streams)
        for stream in streams:
            await stream.render(NOT_NOTED)

    monkeypatch.setattr(Blenders, "_rest", rest)
    turns, tried = Turns(tmp_path / "noted"), [Setting(1, 2), Setting(2, 1), Setting(3, 1)]
    search = Search(config(NOTING), tried, 0.1, turn_begins=turns.begins)
    monkeypatch.setattr(search._blenders, "_frame", 0.0)  # on no machine a frame takes longer than a turn
    await search.run()
    turns.begins(0, None)
    by_threads: dict[int, set[str]] = {1: set(), 2: set()}
    first = -1
    for _, group in itertools.groupby(turns.seen, key=lambda turn: turn[0]):
        taken = [*group]
        for _, setting, blenders, samples in taken:
            assert len(blenders) == setting.instances
            assert len({*samples}) == len(samples)
            by_threads[setting.threads] |= blenders
        assert {min(samples) for *_, samples in taken} == {min(taken[0][-1])}, "a round has the same samples for all"
        assert min(taken[0][-1]) > first, "the next round has others"
        first = min(taken[0][-1])
    assert {threads: len(blenders) for threads, blenders in by_threads.items()} == {1: 3, 2: 1}


@pytest.mark.exhaustive
async def test_frames_that_take_longer_than_a_turn(config: Callable[[str], StreamConfig], tmp_path: Path) -> None:
    """Then each Blender of a fleet renders one sample in its turn, the same one, and none renders in vain."""
    turns = Turns(tmp_path / "noted")
    text = NOTING.replace("def sample(task):", "def sample(task):\n    import time; time.sleep(0.2)")
    found = await Search(config(text), [Setting(1, 2), Setting(2, 1)], 0.6, turn_begins=turns.begins).run()
    turns.begins(0, None)
    for number, setting, blenders, samples in turns.seen:
        assert len(blenders) == setting.instances
        assert samples == [number - 1] * setting.instances
    assert found.best.setting == Setting(2, 1)


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_in_heats_if_not_all_can_be_open(
    config: Callable[[str], StreamConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of the first fleets has turns with the next ones, and no more Blenders are open than there may be."""
    monkeypatch.setattr(searching, "_MOST", 3)
    most = []

    def turn_begins(number: int, setting: Setting) -> None:
        most.append(sum(map(len, search._blenders._held.values())))

    tried = [Setting(1, 1), Setting(2, 1), Setting(1, 2), Setting(2, 2)]
    search = Search(config(ONE_AT_A_TIME), tried, 1.8, turn_begins=turn_begins)
    found = await search.run()
    assert found.best.setting.instances == 2
    assert [one.setting for one in found.trials] == tried
    assert max(most) == (4 if found.best.setting.threads == 1 else 3)  # a fleet beside the best one, in any case


async def test_those_that_were_as_fast_in_an_earlier_heat_are_named(
    config: Callable[[str], StreamConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the best one stays the best."""
    rates = {Setting(1, 1): 99.0, Setting(2, 1): 100.0, Setting(2, 2): 101.0, Setting(1, 2): 50.0}

    async def turn(self: Blenders, setting: Setting, first: int, seconds: float) -> tuple[Turn, int]:
        return Turn(rates[setting]), first + 1

    monkeypatch.setattr(searching, "_MOST", 2)
    monkeypatch.setattr(Blenders, "turn", turn)
    found = await Search(config(NOTING), [*rates], 0.05).run()
    assert found.best.setting == Setting(1, 1)
    assert [one.setting for one in found.level] == [Setting(2, 1), Setting(2, 2)]


async def test_what_has_no_room_is_left_out(
    config: Callable[[str], StreamConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and the rest is tried; what is asked for first is tried in any case."""
    monkeypatch.setattr(searching, "available", lambda: 1.0)
    found = await Search(config(ONE_AT_A_TIME), [Setting(2, 1), Setting(3, 1), Setting(1, 1)], 0.1).run()
    if sys.platform == "linux":  # elsewhere nobody knows what a Blender takes
        assert [one.setting for one in found.trials] == [Setting(2, 1), Setting(1, 1)]
        assert [*found.left_out] == [Setting(3, 1)]
        assert "Not tried: 3 x 1 thread" in "\n".join(line.plain for line in verdict(found))


async def test_a_bad_sample_is_told(config: Callable[[str], StreamConfig]) -> None:
    """A config that skips them would leave Blenders without the frames that are measured."""
    bad = "from asyncblend import blender as bl\n\ndef sample(task):\n    raise ValueError('it is bad')\n\nbl.serve(sample)"
    skipping = dataclasses.replace(config(bad), on_bad_sample="skip")
    with pytest.raises(SampleError, match="it is bad"):
        await Search(skipping, [Setting(1, 1)], 0.05).run()


async def test_memory_that_nobody_tells_is_unknown(
    config: Callable[[str], StreamConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not shown as nothing."""
    monkeypatch.setattr(holding, "memory", lambda of: 0.0)
    found = await Search(config(NOTING), [Setting(1, 1)], 0.05).run()
    assert found.best.memory is None


@pytest.mark.exhaustive
@pytest.mark.slow
async def test_gpus_are_compared_with_the_processor(config: Callable[[str], StreamConfig]) -> None:
    """The Blenders get them in turns, and the advice names them."""
    tried = [Setting(2, 1), Setting(1, 1, True), Setting(2, 1, True)]
    found = await Search(config(BY_GPU), tried, 2.0, gpus=[6, 7]).run()
    assert found.best.setting == Setting(2, 1, True)
    assert [line.plain for line in toml(found, "scene.py", 16, [6, 7])] == [
        *("Write into a TOML file, or give a stream as keywords:", "instances = 2", "threads = 1", "gpus = [6, 7]")
    ]


def test_a_queue_that_is_too_small_is_said() -> None:
    """With fewer slots than two for each Blender, some would wait."""
    (one,) = trials(_9x1=[10.0])
    found = Found(one, [], [one])
    assert [line.plain for line in toml(found, "a.toml", 16)][1:] == ["instances = 9", "threads = 1", "queue_size = 18"]
    assert [line.plain for line in toml(found, "a.toml", 18)][1:] == ["instances = 9", "threads = 1"]


async def test_a_gpu_on_which_nothing_renders_is_left_out(config: Callable[[str], StreamConfig]) -> None:
    """With the reason. Where nothing else is tried, it is an error."""
    found = await Search(config(NO_GPU), [Setting(1, 1), Setting(1, 1, True)], 0.1, gpus=["7"]).run()
    assert found.best.setting == Setting(1, 1)
    assert "nothing renders on 7" in found.left_out[Setting(1, 1, True)]
    json.dumps(figures(found))
    with pytest.raises(InstanceExited, match="nothing renders on 7"):
        await Search(config(NO_GPU), [Setting(1, 1, True)], 0.1, gpus=["7"]).run()


# -- the command ------------------------------------------------------------------------------------------------------


def bench(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "asyncblend", "bench", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_prints_what_to_write(config: Callable[[str], StreamConfig], tmp_path: Path) -> None:
    """The last lines are TOML. A table of 80 columns has a line for each fleet, and a file has all figures."""
    blender = str(config(NOTING).blender)
    (tmp_path / "config.toml").write_text(f'script = "scene.py"\nlength = 3\nblender = "{blender}"\n')
    options = ("--instances", "1,2", "--threads", "1", "--seconds", "0.1", "--json", "new/figures.json", "--out", ".")
    printed = bench(tmp_path, "config.toml", *options)
    assert re.search(r"^ 2 x 1 thread +\S+ +\S+ to \S+ +\d\.\d\dx( +[\d,]+ MiB +\d+%)? *$", printed, re.MULTILINE)
    *_, where, instances, threads = printed.splitlines()
    assert where == "Write into config.toml:"
    assert instances in ("instances = 1", "instances = 2")
    assert threads == "threads = 1"
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "new" / "figures.json").read_text(encoding="utf-8"))
    assert [trial["instances"] for trial in found["trials"]] == [1, 2]
    assert all(trial["frames_per_second"] > 0 for trial in found["trials"])
    assert found["best"] in ({"instances": n, "threads": 1, "gpu": False} for n in (1, 2))


def test_it_says_when_frames_were_too_long() -> None:
    """Fewer than three turns are no sure advice."""

    def said(rounds: int) -> str:
        some = trials(_1x1=[10] * rounds, _2x1=[20] * rounds)
        return "\n".join(line.plain for line in verdict(Found(some[1], [], some)))

    assert "It had only 2 turns" in said(2)
    assert "turns" not in said(3)


def test_it_says_why_only_where_that_is_so() -> None:
    """That fewer Blenders take less memory is no reason against as many of them with more threads."""

    def said(*level: str) -> str:
        best, *others = trials(_2x1=[10] * 3, **{name: [10] * 3 for name in level})
        return verdict(Found(best, others, [best, *others]))[1].plain

    assert said("_2x2", "_4x1").endswith("for noise: 2 x 2 threads, 4 x 1 thread. Fewer Blenders take less memory.")
    assert said("_2x2") == "As fast, but for noise: 2 x 2 threads."


def test_it_says_when_other_programs_were_busy() -> None:
    """They get less if there are more Blenders, so that these seem faster than they are."""
    some = [Trial(Setting(1, 1), {1: Turn(10.0, 0.5, 0.3)})]
    assert "Other programs took 30% of the processor" in verdict(Found(some[0], [], some))[1].plain
