"""The line between one Blender and its host."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncblend.errors import ProtocolError
from asyncblend.wire import line as line_module
from asyncblend.wire.line import LONGEST, Line, LineBroken, LineMessage, gone_on, pack
from asyncblend.wire.payload import decode_values, encode_values
from asyncblend.wire.protocol import Name

NAME = (3, 2**40)


def pair() -> tuple[Line, Line]:
    """Return both ends of a line."""
    made = Line.pair()
    assert made is not None
    return made[0], Line(made[1])


def send(end: Line, name: Name, step: int, parts: Sequence[Any]) -> None:
    """Send a message that fits."""
    message = pack(name, step, parts)
    assert message is not None
    end.send(message)


def received(end: Line) -> LineMessage:
    """Return the next message, which is there or on its way."""
    while (message := end.receive()) is None:
        end.wait(10)
    return message


def test_values_travel() -> None:
    """Both ways, one message after another, without a copy of the arrays."""
    host, blender = pair()
    for step in range(3):
        send(host, NAME, step, encode_values({"action": step}))
        asked = received(blender)
        assert (asked.name, asked.step, decode_values(asked.parts)) == (NAME, step, {"action": step})
        values: dict[str, Any] = {
            "image": np.full((3, 4), step, np.uint8),
            "x": np.float64(0.5),
            "empty": np.empty((0, 3)),
            "text": "ä",
        }
        send(blender, NAME, step, encode_values(values))
        back = decode_values(received(host).parts)
        assert list(back) == list(values)
        assert all(np.array_equal(back[name], values[name]) for name in values)
        assert back["image"].base is not None
        assert not back["image"].flags.writeable
    assert host.receive() is blender.receive() is None


def test_a_message_without_parts() -> None:
    """It says that the answer comes otherwise."""
    host, blender = pair()
    blender.send(gone_on(NAME, 7))
    assert received(host) == LineMessage(NAME, 7, [])


def test_messages_come_in_any_pieces() -> None:
    """Byte by byte, and several at once."""
    host, blender = pair()
    sent = [encode_values({"x": np.arange(5)}), [b""], encode_values({})]
    for step, parts in enumerate(sent):
        send(blender, NAME, step, parts)
    data = host._socket.recv(LONGEST)
    own, other = socket.socketpair()
    end = Line(own)
    for at in range(len(data)):
        message = end.receive()
        if message is not None:
            assert [bytes(part) for part in message.parts] == [bytes(memoryview(part)) for part in sent[message.step]]
            assert not end.pending
        assert other.send(data[at : at + 1]) == 1
    assert received(end).step == 2
    other.sendall(2 * data)
    assert [received(end).step for _ in range(3)] == [0, 1, 2]
    assert end.pending
    assert [received(end).step for _ in range(3)] == [0, 1, 2]
    other.close()


@pytest.mark.parametrize("parts", [[bytes(LONGEST)], [b"x"] * 65, [bytes(LONGEST // 2)] * 2])
def test_what_is_too_large_is_not_sent(parts: list[bytes]) -> None:
    """The longest message is."""
    host, blender = pair()
    assert pack(NAME, 0, parts) is None
    longest = [bytes(LONGEST - line_module._HEAD.size - 4)]
    send(host, NAME, 1, longest)
    assert received(blender).parts == longest


def test_nobody_waits_to_send() -> None:
    """A socket that nobody reads breaks the line, for both ends; what came before can be read."""
    host, blender = pair()
    part = bytes(LONGEST // 2)
    for step in range(1000):
        send(host, NAME, step, [part])
        if not host._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and _is_broken(host):
            break
    assert 2 < step < 999
    assert received(blender).step == 0
    with pytest.raises(LineBroken):
        while True:
            received(blender)


def _is_broken(end: Line) -> bool:
    try:
        return end.receive() is not None
    except LineBroken:
        return True


def test_the_end_wakes_who_waits() -> None:
    """At both ends, from any thread, also twice; sending then does no harm."""
    host, blender = pair()
    waiting = [threading.Thread(target=end.wait, args=(1000,)) for end in (host, blender)]
    for thread in waiting:
        thread.start()
    host.end()
    host.end()
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive()
    for end in (host, blender):
        send(end, NAME, 0, [b"x"])
        with pytest.raises(LineBroken):
            end.receive()


def test_who_lets_go_ends_it() -> None:
    """The socket is closed when nobody has the line any more."""
    host, blender = pair()
    descriptor = host.fileno()
    del host
    gc.collect()
    with pytest.raises(LineBroken):
        received(blender)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_blenders_end_is_inherited() -> None:
    """None, a closed descriptor, or one that is another file now, is no line; the right one is not inherited further."""
    made = Line.pair()
    assert made is not None
    host, others = made
    descriptor = os.dup(others.fileno())
    blender = Line.inherit(descriptor)
    assert blender is not None
    assert not os.get_inheritable(descriptor)
    others.close()
    send(host, NAME, 1, [b"{}"])
    assert received(blender).step == 1
    with open(os.devnull) as file:
        assert Line.inherit(file.fileno()) is Line.inherit(None) is None
    with socket.socket(socket.AF_UNIX) as named, socket.socket() as tcp:  # such as X11's, where the line's was closed
        named.bind("\0asyncblend-test")
        for other in (named, tcp):
            assert Line.inherit(other.fileno()) is None
            os.fstat(other.fileno())
    closed = os.dup(descriptor)
    os.close(closed)
    assert Line.inherit(closed) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<QQQI", 1, 2, 3, 65), "65 parts over a line"),
        (struct.pack("<QQQII", 1, 2, 3, 1, LONGEST), "bytes over a line"),
        (struct.pack("<QQQI2I", 1, 2, 3, 2, 2**32 - 1, 2**32 - 1), "bytes over a line"),
    ],
)
def test_nonsense_is_refused_before_anything_is_made_of_it(data: bytes, message: str) -> None:
    """The error says what is wrong."""
    own, other = socket.socketpair()
    end = Line(own)
    other.send(data)
    other.close()
    with pytest.raises(ProtocolError, match=message):
        received(end)


@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_do_no_harm(data: bytes) -> None:
    """They are a message, a beginning of one, or an error; never anything else."""
    own, other = socket.socketpair()
    end = Line(own)
    other.send(data)
    other.close()
    size = 0
    try:
        while True:
            message = received(end)
            size += line_module._HEAD.size + sum(4 + len(part) for part in message.parts)
            assert size <= len(data)
    except (LineBroken, ProtocolError):
        pass
