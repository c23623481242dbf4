"""What goes wrong on the wire: lost connections, messages that are too large, other lives and other versions."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import psutil
import pytest

import asyncblend as ab
from asyncblend.fleet.discovery import find_blender
from asyncblend.wire import protocol
from tests.faults.common import FAST, LIMIT, MIB, PLAIN, WORKER, Write, check_noise, until

RECONNECTS = """
left = {2, 3, 5, 8}
def reconnect(index):
    if index in left:
        left.remove(index)
        worker._socket.disconnect(worker._launch.endpoint)
        worker._socket.connect(worker._launch.endpoint)
answer = worker.answer
def answer_and_reconnect(sample, lease):
    answer(sample, lease)
    if AFTER: reconnect(lease.fields["index"])
worker.answer = answer_and_reconnect
def sample(task):
    if not AFTER: reconnect(task.index)
    return {"noise": task.rng.random(3), "pid": os.getpid()}
"""


@pytest.mark.parametrize("after", [False, True], ids=["before a frame is sent", "after a frame was sent"])
@pytest.mark.exhaustive
async def test_a_connection_that_comes_back_is_another_one(after: bool, blender: str, write_script: Write) -> None:
    """A Blender that reconnects between leases is sent again what was lost with the old connection."""
    script = write_script(f"{WORKER}\nAFTER = {after}\n{RECONNECTS}")
    config = ab.StreamConfig(script=script, blender=blender, instances=1, length=12)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = [frame async for frame in stream]
        stats = stream.stats()
    check_noise(frames, range(12))
    assert len({frame["pid"] for frame in frames}) == 1
    assert (stats.restarts, stats.bad_messages) == (0, 0)


async def test_a_blender_that_reconnects_while_it_is_stopped_is_told(
    fake: str, write_script: Write, tmp_path: Path
) -> None:
    """Its connection was lost just before the stream is left: it still receives STOP, and is not killed."""
    go, gone, ended = (tmp_path / name for name in ("go", "gone", "ended"))
    script = write_script(
        f"""{WORKER}
go, gone, ended = (pathlib.Path(name) for name in {[str(path) for path in (go, gone, ended)]})
hello = worker.hello
def lose_the_connection():
    if go.exists() and not gone.exists():
        worker._socket.disconnect(worker._launch.endpoint)
        worker._socket.connect(worker._launch.endpoint)
        gone.touch()
    else:
        hello()
worker.hello = lose_the_connection
def sample(task): return {{}}
try:
    bl.serve(sample)
finally:
    ended.touch()
""",
        serve=False,
    )
    config = ab.StreamConfig(script=script, blender=fake, instances=1, length=2, timeouts=ab.Timeouts(stop=LIMIT))
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        async for _ in stream:
            pass
        go.touch()
        await until(gone.exists)
    assert ended.exists()


FLOODS = {
    # Beyond what the host takes in one part: it drops the connection, with all that is on it.
    "a part of more than a gigabyte": ("send(np.zeros((1 << 30) + 1, np.uint8), copy=False)", 0),
    "ten thousand parts": ("send_multipart([b''] * 10_000)", 1),
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_message_that_is_too_large(what: str, fake: str, write_script: Write, tmp_path: Path) -> None:
    """One of our Blenders sends it: it is never held in memory, and each index arrives once."""
    code, bad = FLOODS[what]
    script = write_script(
        WORKER
        + f"""
flag = pathlib.Path({str(tmp_path / "flag")!r})
def sample(task):
    if task.index == 4 and not flag.exists():
        flag.touch()
        worker._socket.{code}
    return {{"noise": task.rng.random(3)}}
"""
    )
    before = psutil.Process().memory_info().rss
    config = ab.StreamConfig(script=script, blender=fake, instances=1, length=12, restart=FAST)
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], range(12))
        assert stream.stats().bad_messages == bad
    assert psutil.Process().memory_info().rss - before < 100 * MIB


async def test_an_unreadable_frame_costs_one_rendering(blender: str, write_script: Write) -> None:
    """Its lease goes out again at once, and not after the budget of a frame."""
    script = write_script(
        WORKER
        + """
from asyncblend.wire import protocol
answer, bad = worker.answer, {3, 4, 7}
def answer_unreadably(sample, lease):
    about = {name: lease.fields[name] for name in ("pass", "lease", "index")}
    if about["index"] not in bad:
        return answer(sample, lease)
    bad.remove(about["index"])
    tree = b'{"arrays":[["uint8",[7]]],"values":{"noise":{"$":0}}}'
    worker._socket.send_multipart(protocol.encode(protocol.FRAME, about, [tree, b"short"]))
worker.answer = answer_unreadably
"""
        + PLAIN
    )
    config = ab.StreamConfig(
        script=script, blender=blender, instances=1, length=12, timeouts=ab.Timeouts(frame=10 * LIMIT)
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        check_noise([frame async for frame in stream], range(12))
        stats = stream.stats()
    assert (stats.restarts, stats.bad_messages, stats.stale) == (0, 3, 0)


# A process that a Blender left behind when it died: it has the secret, and goes on as if it were that Blender.
GHOST = """
import sys, zmq
from asyncblend.wire import gate, payload, protocol

endpoint, token, heard = sys.argv[1:]
socket = zmq.Context().socket(zmq.DEALER)
gate.show_token(socket, token)
socket.connect(endpoint)
me = dict(token=token, version=protocol.VERSION, instance=0, epoch=0)

def frames():
    for serial in range(10):
        fields = {"pass": 0, "lease": serial, "index": 2}
        socket.send_multipart(protocol.encode(protocol.FRAME, fields, payload.encode_values({"by": "ghost"})))

frames()
socket.send_multipart(protocol.encode(protocol.HELLO, dict(ready=True, holding=[], **me)))
frames()
socket.send_multipart(protocol.encode(protocol.BEAT, me))
while True:
    assert socket.poll(30_000)
    message = protocol.decode(socket.recv_multipart())
    if message.kind == protocol.STOP:
        with open(heard, "w") as file:
            file.write(message.fields["reason"])
        sys.exit()
"""


@pytest.mark.exhaustive
async def test_frames_of_what_an_earlier_life_left_behind_are_dropped(
    blender: str, write_script: Write, tmp_path: Path
) -> None:
    """A leftover child of a dead Blender sends frames for its leases while the next life renders them."""
    ghost, heard = tmp_path / "ghost.py", tmp_path / "heard"
    package = Path(ab.__file__).parents[1]  # the one under test, which need not be the one that is installed
    ghost.write_text(f"import sys\nsys.path.insert(0, {str(package)!r})\n{GHOST}")
    script = write_script(
        WORKER
        + f"""
heard = pathlib.Path({str(heard)!r})
def sample(task):
    if task.index == 2:
        if worker._launch.epoch == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        ghost = [sys.argv[1], {str(ghost)!r}, worker._launch.endpoint, worker._launch.token, str(heard)]
        subprocess.Popen(ghost, start_new_session=True)
        while not heard.exists(): threading.Event().wait(0.01)
    return {{"by": "Blender", "epoch": worker._launch.epoch}}
"""
    )
    config = ab.StreamConfig(
        script=script, script_args=[sys.executable], blender=blender, instances=1, length=4, restart=FAST
    )
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        frames = {frame.index: frame async for frame in stream}
        stats = stream.stats()
    assert [frames[index]["by"] for index in range(4)] == ["Blender"] * 4
    assert frames[2]["epoch"] == 1
    assert stats.restarts == 1
    assert stats.stale == 20
    assert "another life" in heard.read_text()


async def test_another_version_inside_blender(blender: str, write_script: Write, tmp_path: Path) -> None:
    """A Blender that loads a copy of the package with another protocol is an error that names both, without a retry."""
    package = Path(ab.__file__).parent
    other = tmp_path / "other" / "asyncblend"
    shutil.copytree(package, other, ignore=shutil.ignore_patterns("__pycache__"))
    wire = other / "wire" / "protocol.py"
    mine, theirs = f"VERSION = {protocol.VERSION}", f"VERSION = {protocol.VERSION + 7}"
    assert wire.read_text().count(f"\n{mine}\n") == 1
    wire.write_text(wire.read_text().replace(mine, theirs))
    bootstrap, starts = other / "blender" / "serving" / "bootstrap.py", tmp_path / "starts"
    command = [find_blender(blender).path, str(bootstrap)]
    if find_blender(blender).kind == "executable":
        main = Path(blender).parent / "main.py"
        main.write_text(main.read_text().replace(str(package / "blender" / "serving" / "bootstrap.py"), str(bootstrap)))
        command = [blender]
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho start >> {starts}\nexec {" ".join(command)} "$@"\n')
    wrapper.chmod(0o755)
    config = ab.StreamConfig(script=write_script(PLAIN), blender=wrapper, instances=1, restart=FAST)
    with pytest.raises(ab.ProtocolError, match=rf"\b{protocol.VERSION + 7}\b.*\b{protocol.VERSION}\b") as caught:
        async with asyncio.timeout(LIMIT), ab.BlenderStream(config):
            pytest.fail("entered")
    assert type(caught.value) is ab.ProtocolError
    assert starts.read_text() == "start\n"
