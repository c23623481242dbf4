"""Who connects without being a Blender of the run: it never becomes a peer, whatever it sends."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq

import asyncblend as ab
from asyncblend.wire import gate, protocol
from asyncblend.wire.gate import show_token
from tests.faults.common import LIMIT, MIB, PLAIN, Write, until
from tests.stream.hub_stage import ME, Stage, serving

FIRST_ID = 1804289383  # libzmq's first routing id for an anonymous peer of a ROUTER; the next ones follow

# Strangers with the ids that anonymous peers get next, then peers of the run. libzmq aborts if one id is taken twice.
TAKES_IDS = f"""
import asyncio, sys, tempfile, pathlib, zmq
from tests.stream.hub_stage import serving

async def main(folder):
    context = zmq.Context()
    async with asyncio.timeout({LIMIT}), serving(folder) as stage:
        strangers = [context.socket(zmq.DEALER) for _ in range(20)]
        for number, stranger in enumerate(strangers):
            stranger.linger = 0
            stranger.routing_id = bytes([0]) + ({FIRST_ID} + number).to_bytes(4, "big")
            if number % 2:
                stranger.plain_username, stranger.plain_password = b"asyncblend", b"guess"
            stranger.connect(stage.hub.endpoint)
            stranger.send(b"x", zmq.DONTWAIT)
        while stage.hub.refused < 10:
            await asyncio.sleep(0.005)
        for _ in range(20):
            await stage.check_serving()
        print("lives", stage.hub.bad_messages)
        context.destroy(linger=0)

with tempfile.TemporaryDirectory(prefix="h") as folder:
    asyncio.run(main(pathlib.Path(folder)))
"""


def test_a_stranger_cannot_take_the_id_of_a_peer() -> None:
    """The host lives, and hears its peers."""
    command = [sys.executable, "-c", TAKES_IDS]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=2 * LIMIT)
    assert (done.stdout, done.returncode) == ("lives 0\n", 0), done.stderr[-2000:]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that gives a handshake twice as long as anything here takes."""
    monkeypatch.setattr(gate, "_HANDSHAKE", 60_000)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        async with serving(Path(folder)) as stage:
            yield stage


@pytest.mark.parametrize("token", ["guess", "x" * 255])
async def test_a_stranger_is_refused_and_counted(stage: Stage, token: str) -> None:
    """Nothing is heard of what it sends."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        show_token(stranger, token)
        stranger.connect(stage.hub.endpoint)
        for parts in ([b""] * 5, [bytes(8 * MIB)], protocol.encode(protocol.READY, {})):
            stranger.send_multipart(parts)
        await until(lambda: stage.hub.refused)
        await stage.check_serving()
    assert stage.hub.bad_messages == 0
    assert not stage.told.events


@pytest.mark.usefixtures("patient")
async def test_a_large_message_before_the_handshake_is_cut_off(stage: Stage) -> None:
    """More than a part may have ends the connection at its announcement, long before the handshake is overdue."""
    path = stage.hub.endpoint.removeprefix("ipc://")
    greeting = bytes([0xFF, *[0] * 8, 0x7F, 3, 1]) + b"PLAIN".ljust(20, b"\0") + bytes(32)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(path)
        stranger.sendall(greeting + bytes([6]) + (1 << 30).to_bytes(8, "big"))
        stranger.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            try:
                while await loop.sock_recv(stranger, 4096):
                    pass
            except ConnectionResetError:
                pass
    await stage.check_serving()


async def test_one_malformed_hello_costs_one_message(stage: Stage) -> None:
    """It has the right token, so it is of this run; only another version of the protocol ends the run."""
    peer = stage.peer()
    for changes in (
        {"instance": "one"},
        {"epoch": -1},
        {"holding": [[1]]},
        {"ready": 1},
        {"version": "3"},
        {"version": None},
    ):
        await peer.hello(ME, **changes)
    await stage.handled(peer)
    assert stage.hub.bad_messages == 6
    assert not [event for event in stage.told.events if event[0] == "fail"]
    await peer.join()


async def test_strangers_do_not_stop_a_stream(fake: str, write_script: Write) -> None:
    """They come and go during a whole stream; what came of them is counted, and every sample arrives once."""
    config = ab.StreamConfig(script=write_script(PLAIN), blender=fake, instances=2, length=300)
    context = zmq.Context()
    strangers = [context.socket(zmq.DEALER) for _ in range(10)]
    for stranger in strangers:
        show_token(stranger, "guess")
    async with asyncio.timeout(LIMIT), ab.BlenderStream(config) as stream:
        got = []
        async for frame in stream:
            got.append(frame.index)
            if frame.index % 30 == 0:
                strangers[frame.index // 30].connect(stream._run._hub.endpoint)
                strangers[frame.index // 30].send(bytes(MIB))
        await until(lambda: stream.stats().refused >= 10)
    context.destroy(linger=0)
    assert sorted(got) == list(range(300))
    assert stream.stats().bad_messages == 0
