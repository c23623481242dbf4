"""The hub and its connections, against raw sockets that do whatever a Blender might do."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncblend.errors import ProtocolError
from asyncblend.stream.hub import Hub
from asyncblend.wire import payload, protocol
from asyncblend.wire.launch import Life
from asyncblend.wire.request import Request

from .hub_stage import LIMIT, ME, NO_PARAMS, SEED, Recorder, Stage, serving

OTHER = Life(2, 0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for an ipc socket."""
    with tempfile.TemporaryDirectory(prefix="h") as path:
        yield Path(path)


@pytest.fixture
async def stage(folder: Path) -> AsyncIterator[Stage]:
    async with serving(folder) as stage:
        yield stage


# -- saying hello ------------------------------------------------------------------------------------------------


async def test_hello_is_welcomed(stage: Stage) -> None:
    """The hub answers HELLO with its version and the seed, and counts it as a sign of life only."""
    peer = stage.peer()
    await peer.hello()
    assert await peer.receive() == ("welcome", {"version": protocol.VERSION, "seed": SEED}, None)
    assert stage.told.events == [("beat", ME, 0)]
    assert stage.hub.bad_messages == 0


async def test_what_blender_says_is_passed_on(stage: Stage) -> None:
    """READY, FRAME and FAILED are passed on with the life of their connection, and with pass, lease and index."""
    peer = stage.peer()
    await peer.join()
    await peer.say(protocol.READY)
    await peer.frame(4, 9, {"n": 1}, of=3)
    await peer.say(
        protocol.FAILED, **{"pass": 2, "lease": 5, "index": 10, "error": "KeyError: 'x'", "traceback": "..."}
    )
    await peer.say(protocol.BYE)
    await stage.handled(peer)
    assert stage.told.events == [
        ("beat", ME, 0),
        ("ready", ME),
        ("frame", ME, 3, 4, 9, {"n": 1}),
        ("failed", ME, 2, 5, 10, "KeyError: 'x'", "..."),
    ]
    assert stage.hub.bad_messages == 0


async def test_no_small_array_keeps_zeromqs_memory(stage: Stage) -> None:
    """Else the consumer's thread frees a `zmq.Frame`, which looks for signals and loses the KeyboardInterrupt of one."""
    peer = stage.peer()
    await peer.join()
    await peer.frame(4, 9, {"noise": np.arange(3.0)}, of=3)
    await stage.handled(peer)
    base = stage.told.events[-1][-1]["noise"]
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(memoryview(base).obj) is bytes


async def test_blenders_version_is_kept(stage: Stage) -> None:
    """The hub keeps the last version that a READY named."""
    peer = stage.peer()
    await peer.join()
    assert stage.hub.blender == ""
    await peer.say(protocol.READY, blender="4.5.1")
    await peer.say(protocol.READY)
    await stage.handled(peer)
    assert stage.hub.blender == "4.5.1"
    await peer.say(protocol.READY, blender=4.5)
    await stage.handled(peer)
    assert (stage.hub.blender, stage.hub.bad_messages) == ("4.5.1", 1)


async def test_arrays_stay_whole_after_later_messages(stage: Stage) -> None:
    """Arrays are views of received buffers, which no later message overwrites."""
    peer = stage.peer()
    await peer.join()
    for i in range(50):
        await peer.frame(i, i, {"image": np.full((50, 50), i), "one": np.array(i)})
    await stage.handled(peer)
    frames = [event for event in stage.told.events if event[0] == "frame"]
    assert [event[3:5] for event in frames] == [(i, i) for i in range(50)]
    for i, (*_, values) in enumerate(frames):
        assert values["image"].shape == (50, 50)
        assert (values["image"] == i).all()
        assert values["one"] == i


async def test_lives_are_told_apart_by_their_connection(stage: Stage) -> None:
    """A message belongs to the life that said HELLO on the same connection."""
    one, two = stage.peer(), stage.peer()
    await one.join(ME)
    await two.join(OTHER)
    await two.say(protocol.READY)
    await stage.told.until("ready", OTHER)
    assert ("ready", ME) not in stage.told.events
    await one.say(protocol.READY)
    await stage.told.until("ready", ME)


async def test_a_second_hello_is_only_a_beat(stage: Stage) -> None:
    """HELLO on a known connection is a sign of life, and gets no second WELCOME."""
    peer = stage.peer()
    await peer.join(ready=True)
    assert stage.told.events == [("beat", ME, 0), ("reconnected", ME, []), ("ready", ME)]
    stage.told.events.clear()
    await peer.hello(ready=True)
    await peer.say(protocol.READY)
    await stage.told.until("ready", ME)
    assert stage.told.events == [("beat", ME, 0), ("ready", ME)]
    assert stage.lease()
    assert (await peer.receive()).kind == protocol.LEASE


async def test_a_wrong_token_is_refused(stage: Stage) -> None:
    """A stranger gets STOP and is counted; the run goes on, and the stranger takes over no life."""
    stranger = stage.peer()
    await stranger.hello(token="guessed")
    kind, fields, _ = await stranger.receive()
    assert kind == protocol.STOP
    assert "wrong token" in fields["reason"]
    assert stage.hub.token not in fields["reason"]
    assert (stage.hub.bad_messages, stage.told.events) == (1, [])
    assert not stage.lease()
    await stage.check_serving()


@pytest.mark.parametrize("token", ["\ud800", "grüß", ""], ids=ascii)
async def test_no_token_ends_the_serving(stage: Stage, token: str) -> None:
    """A HELLO or BEAT with any text as its token is refused, and the hub goes on."""
    stranger = stage.peer()
    await stranger.beat(token=token)
    await stranger.hello(token=token)
    assert (await stranger.receive()).kind == protocol.STOP
    assert stage.hub.bad_messages == 2
    await stage.check_serving()


async def test_the_token_of_another_run_is_refused(stage: Stage) -> None:
    """Each run has its own token."""
    with tempfile.TemporaryDirectory(prefix="h") as other, Hub(Path(other), SEED, {}) as hub:
        assert hub.token != stage.hub.token
        stranger = stage.peer()
        await stranger.hello(token=hub.token)
        assert (await stranger.receive()).kind == protocol.STOP


@pytest.mark.parametrize("version", [protocol.VERSION + 1, 0])
async def test_another_version_with_our_token_ends_the_run(stage: Stage, version: Any) -> None:
    """A Blender of this run with another protocol version is an error that names both versions, on both sides."""
    peer = stage.peer()
    await peer.hello(version=version)
    kind, fields, _ = await peer.receive()
    assert kind == protocol.STOP
    both = f"version {version!r}, this asyncblend speaks {protocol.VERSION}"
    assert both in fields["reason"]
    ((event, error),) = stage.told.events
    assert event == "fail"
    assert isinstance(error, ProtocolError)
    assert both in str(error)
    assert stage.hub.bad_messages == 1
    await stage.check_serving()


async def test_another_version_without_our_token_does_not(stage: Stage) -> None:
    """A stranger with another protocol version is only refused."""
    peer = stage.peer()
    await peer.hello(token="guessed", version=99)
    assert "wrong token" in (await peer.receive()).fields["reason"]
    assert stage.told.events == []


async def test_a_life_that_is_over_is_sent_away(stage: Stage) -> None:
    """A Blender whose life has ended for the fleet gets STOP, and no lease."""
    late = stage.peer()
    await late.hello(Life(1, 7), ready=True)
    kind, fields, _ = await late.receive()
    assert (kind, fields["reason"]) == (protocol.STOP, "another life has begun")
    assert stage.told.events == []
    assert not stage.lease(Life(1, 7))


@pytest.mark.parametrize(
    "changes",
    [{"holding": None}, {"holding": {}}, {"holding": [1]}, {"holding": [[1]]}, {"holding": [[1, 2, 3]]},
     {"holding": [["1", 2]]}, {"holding": [[True, 2]]}, {"ready": None}, {"ready": 1}],
    ids=repr,
)  # fmt: skip
async def test_an_incomplete_hello_is_no_hello(stage: Stage, changes: dict[str, Any]) -> None:
    """A HELLO without a list of (pass, lease) pairs, or without `ready`, is counted, and connects no life."""
    peer = stage.peer()
    await peer.say(protocol.HELLO, **{**peer.about(), "ready": False, "holding": [], **changes})
    await stage.handled(peer)
    assert stage.hub.bad_messages == 1
    assert not stage.lease()
    await peer.join()


# -- connections that come and go --------------------------------------------------------------------------------


async def test_an_unknown_connection_is_asked_for_hello(stage: Stage) -> None:
    """A frame on a connection that said no HELLO is dropped and counted, and after the HELLO frames count again."""
    peer = stage.peer()
    await peer.frame(4, 9, {"n": 1})
    assert await peer.receive() == ("hello", {}, None)
    assert stage.told.events == [("dropped",)]
    await peer.join(ready=True, holding=[(0, 5), (2, 0)])
    await peer.frame(5, 10, {"n": 2})
    await stage.told.until("frame", ME, 0, 5, 10, {"n": 2})
    assert stage.told.events[1:-1] == [("beat", ME, 0), ("reconnected", ME, [(0, 5), (2, 0)]), ("ready", ME)]
    assert stage.hub.bad_messages == 0


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (protocol.READY, {}),
        (protocol.BYE, {}),
        (protocol.FAILED, {"pass": 0, "lease": 0, "index": 0, "error": "", "traceback": ""}),
    ],
)
async def test_every_unknown_message_is_answered_with_hello(stage: Stage, kind: str, fields: dict[str, Any]) -> None:
    """Whatever an unknown connection says, the hub asks for HELLO, so that never both sides wait."""
    peer = stage.peer()
    await peer.say(kind, **fields)
    assert (await peer.receive()).kind == protocol.HELLO
    assert stage.told.events == []


async def test_leases_go_to_the_newest_connection(stage: Stage) -> None:
    """The dispatcher hears what a life holds before the life is ready again, and its old connection is unknown."""
    old, new = stage.peer(), stage.peer()
    await old.join(ready=True, holding=[(0, 1)])
    stage.told.events.clear()
    await new.join(ready=True, holding=[(0, 1), (1, 4)])
    assert stage.told.events == [("beat", ME, 0), ("reconnected", ME, [(0, 1), (1, 4)]), ("ready", ME)]
    assert stage.send(ME, Request((0, 7), 3, payload.encode_values({})))
    assert (await new.receive()).fields["lease"] == 7
    await old.frame(1, 0)
    assert (await old.receive()).kind == protocol.HELLO  # and no lease before it
    assert stage.told.events[-1] == ("dropped",)


async def test_a_reconnection_before_ready_is_only_a_connection(stage: Stage) -> None:
    """A life that does not serve yet holds no leases, so its second connection is not reported."""
    old, new = stage.peer(), stage.peer()
    await old.join()
    await new.join()
    await new.say(protocol.READY)
    await stage.told.until("ready", ME)
    assert stage.told.events == [("beat", ME, 0), ("beat", ME, 0), ("ready", ME)]


async def test_a_forgotten_life_is_unknown(stage: Stage) -> None:
    """The connection of a forgotten life is asked for HELLO and then sent away; the next life is welcomed."""
    peer = stage.peer()
    await peer.join()
    stage.hub.forget(ME)
    stage.hub.forget(ME)
    stage.told.lives = {Life(1, 1)}
    assert not stage.lease()
    await peer.say(protocol.READY)
    assert (await peer.receive()).kind == protocol.HELLO
    await peer.hello(ready=True)
    assert (await peer.receive()).kind == protocol.STOP
    await stage.peer().join(Life(1, 1))


async def test_a_connection_belongs_to_the_last_life_that_it_named(stage: Stage) -> None:
    """A connection that says HELLO for two lives is that of the second one, and the hub goes on."""
    peer = stage.peer()
    await peer.join(ME)
    await peer.join(OTHER)
    assert not stage.lease()
    stage.hub.forget(ME)
    await peer.say(protocol.READY)
    await stage.told.until("ready", OTHER)
    stage.hub.forget(OTHER)
    await stage.check_serving()


async def test_a_closed_connection_takes_no_lease(stage: Stage) -> None:
    """`send_leases` names what could not be sent when the connection is gone; STOP and REVOKE are no error then."""
    peer = stage.peer()
    await peer.join()
    peer.close()
    async with asyncio.timeout(LIMIT):
        while stage.lease():
            await asyncio.sleep(0)  # ZeroMQ has no event for it
    stage.hub.send_stop(ME)
    stage.hub.send_revoke(ME, 0, [0])
    await stage.check_serving()


async def test_a_life_without_a_connection_takes_no_lease(stage: Stage) -> None:
    """`add_lease` returns False for a life that never connected; STOP and REVOKE are no error then."""
    assert not stage.lease()
    stage.hub.send_stop(ME)
    stage.hub.send_revoke(ME, 0, [0])


# -- to Blender --------------------------------------------------------------------------------------------------


async def test_a_lease_arrives_with_its_params(stage: Stage) -> None:
    """A lease names pass, serial, index and urgency and carries its params, also when it is sent again."""
    peer = stage.peer()
    await peer.join()
    params = payload.encode_values({"light": 0.5, "pose": np.eye(3)})
    for serial, urgent in ((11, False), (12, True)):
        assert stage.send(ME, Request((5, serial), 3, params, urgent=urgent))
        kind, fields, values = await peer.receive()
        assert (kind, fields) == (protocol.LEASE, {"pass": 5, "lease": serial, "index": 3, "urgent": urgent})
        assert values is not None
        assert values["light"] == 0.5
        np.testing.assert_array_equal(values["pose"], np.eye(3))


async def test_leases_of_one_life_share_a_message(stage: Stage) -> None:
    """They wait for `send_leases`, or for the next message to that life, which comes after them."""
    peer, other = stage.peer(), stage.peer()
    await peer.join()
    await other.join(OTHER)
    requests = [Request((5, serial), serial, NO_PARAMS) for serial in range(3)]
    assert stage.send(ME, *requests)
    message = await peer.whole()
    assert (message.kind, [one.fields["lease"] for one in message.fields["leases"]]) == (protocol.LEASES, [0, 1, 2])
    assert all(stage.hub.add_lease(ME, one) for one in requests)
    assert stage.hub.add_lease(OTHER, requests[0])
    stage.hub.send_revoke(ME, 5, [1])
    assert [(await peer.whole()).kind for _ in range(2)] == [protocol.LEASES, protocol.REVOKE]
    assert not stage.hub.send_leases()
    assert (await other.whole()).kind == protocol.LEASE


async def test_leases_that_cannot_be_sent_are_named(stage: Stage) -> None:
    """Those of a connection that is gone are named once, and those of a life that is over are dropped."""
    peer = stage.peer()
    await peer.join()
    peer.close()
    requests = [Request((5, serial), serial, NO_PARAMS) for serial in range(3)]
    async with asyncio.timeout(LIMIT):
        while stage.lease():
            await asyncio.sleep(0)  # ZeroMQ has no event for it
    assert all(stage.hub.add_lease(ME, one) for one in requests)
    assert stage.hub.send_leases() == [(ME, [(5, 0), (5, 1), (5, 2)])]
    assert all(stage.hub.add_lease(ME, one) for one in requests)
    stage.hub.forget(ME)
    assert not stage.hub.send_leases()


async def test_a_turn_ends_also_where_it_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised while messages are handled, the dispatcher may lease again, and `serve` raises it."""
    peer = stage.peer()
    await peer.join()
    turns: list[str] = []

    def fail(*frame: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(stage.told, "frame", fail)
    monkeypatch.setattr(stage.told, "begin_turn", lambda: turns.append("begin"))
    monkeypatch.setattr(stage.told, "end_turn", lambda: turns.append("end"))
    await peer.frame(1, 0)
    async with asyncio.timeout(LIMIT):
        with pytest.raises(ZeroDivisionError):
            await stage.serving
    assert turns == ["begin", "end"] * (len(turns) // 2) != []
    stage.serve()
    await stage.handled(peer)


async def test_revoke_arrives_after_the_leases_before_it(stage: Stage) -> None:
    """REVOKE names a pass and the serials of its leases, and keeps its order among the other messages."""
    peer = stage.peer()
    await peer.join()
    assert stage.lease()
    stage.hub.send_revoke(ME, 3, (4, 7))
    assert (await peer.receive()).kind == protocol.LEASE
    assert await peer.receive() == ("revoke", {"pass": 3, "leases": [4, 7]}, None)


async def test_stop_arrives(stage: Stage) -> None:
    """The usual STOP has no reason."""
    peer = stage.peer()
    await peer.join()
    stage.hub.send_stop(ME)
    assert await peer.receive() == ("stop", {"reason": ""}, None)


# -- beats -------------------------------------------------------------------------------------------------------


async def test_a_beat_needs_no_hello(stage: Stage) -> None:
    """A beat names its life and its memory, gets no answer, and its socket takes no leases."""
    beating = stage.peer()
    await beating.beat(rss=12_345)
    await stage.told.until("beat", ME, 12_345)
    assert not stage.lease()
    peer = stage.peer()
    await peer.join()
    await beating.beat()
    await stage.handled(beating)
    assert stage.lease()
    assert (await peer.receive()).kind == protocol.LEASE
    assert stage.hub.bad_messages == 0


async def test_a_beat_is_checked_like_a_hello(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A beat with a wrong token, version, life or size is dropped; the log names both versions and no token."""
    peer = stage.peer()
    for change in ({"token": "guessed"}, {"version": protocol.VERSION + 1}, {"instance": -1}, {"rss": -5}):
        await peer.beat(**change)
    await stage.handled(peer)
    assert stage.hub.bad_messages == 4
    assert stage.told.events == []
    assert f"version {protocol.VERSION + 1}, this asyncblend speaks {protocol.VERSION}" in caplog.text
    assert stage.hub.token not in caplog.text


# -- serving -----------------------------------------------------------------------------------------------------


async def test_a_flood_leaves_turns_to_others(stage: Stage) -> None:
    """However fast messages come, other tasks of the event loop get a turn after 64 of them."""
    others: list[int] = []

    class Counter(Recorder):
        def ready(self, life: Life) -> None:
            if not others and len(self.events) == 1:
                asyncio.get_running_loop().call_soon(lambda: others.append(len(self.events)))
            super().ready(life)

    stage.serving.cancel()
    await asyncio.wait([stage.serving])
    stage.told = Counter()
    peer = stage.peer()
    await peer.hello()
    for _ in range(1000):
        await peer.say(protocol.READY)
    stage.serve()
    await stage.handled(peer)
    assert stage.told.events == [("beat", ME, 0)] + [("ready", ME)] * 1000
    assert others[0] <= 64


async def test_the_socket_is_in_the_private_folder(stage: Stage, folder: Path) -> None:
    """The hub binds an ipc socket in its folder."""
    assert stage.hub.endpoint == f"ipc://{folder}/hub"
    assert (folder / "hub").is_socket()


@pytest.mark.parametrize("fits", [False, True])
async def test_a_path_that_is_too_long_means_loopback_tcp(folder: Path, fits: bool) -> None:
    """Where the path is too long for an ipc socket, the hub binds a free port of 127.0.0.1, and either works."""
    room = 100 - len(bytes(folder / "hub")) - 1
    deep = folder / ("d" * (room if fits else room + 1))
    deep.mkdir()
    async with serving(deep) as stage:
        if fits:
            assert stage.hub.endpoint == f"ipc://{deep}/hub"
        else:
            address, _, port = stage.hub.endpoint.rpartition(":")
            assert address == "tcp://127.0.0.1"
            assert int(port) > 0
        peer = stage.peer()
        await peer.join()
        assert stage.lease()
        assert (await peer.receive()).kind == protocol.LEASE


async def test_cancelling_serve_ends_it(stage: Stage) -> None:
    """`serve` ends when it is cancelled, and can be called again."""
    await stage.check_serving()
    stage.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stage.serving
    stage.serve()
    await stage.check_serving()
