"""Hub: the host's end of the wire. One ROUTER socket, bound for one run, that every Blender connects to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import zmq
import zmq.asyncio

from ..aio import end_context
from ..errors import ProtocolError
from ..wire import payload, protocol
from ..wire.launch import Life
from ..wire.protocol import Message
from ..wire.ring import Ring

__all__ = ["Hub", "Receiver"]

_log = logging.getLogger("asyncblend")
_LONGEST_IPC_PATH = 100  # bytes; the limit is 107 on Linux, 103 on macOS
_MESSAGES_A_TURN = 64
_DONTWAIT = int(zmq.DONTWAIT)  # an enumeration's own operators cost more than a send
_POLLIN = int(zmq.POLLIN)
_MORE = _DONTWAIT | int(zmq.SNDMORE)
_TOLERATED = 16  # messages of one connection that cannot be read, until it is not listened to any more
_SUSPECTS = 1024  # connections whose bad messages are counted; the memory of a host that strangers talk to


class Receiver(Protocol):
    """What the hub tells of authenticated messages. None of these may block."""

    def knows(self, life: Life) -> bool:
        """Whether this life is going on."""

    def beat(self, life: Life, rss: int = 0) -> None:
        """It lives, with so many bytes of resident memory; 0: it does not say."""

    def ready(self, life: Life) -> None:
        """It serves."""

    def reconnected(self, life: Life, holding: Sequence[int]) -> None:
        """It came back on another connection, and has the leases with these serials."""

    def frame(self, life: Life, serial: int, index: int, values: dict[str, Any]) -> None:
        """A frame came."""

    def sample_failed(self, life: Life, serial: int, index: int, error: str, traceback: str) -> None:
        """The script's sample function raised."""

    def misbehaved(self, life: Life, how: str) -> None:
        """It keeps sending what cannot be read, and is not listened to any more."""

    def dropped_frame(self) -> None:
        """A frame came from a connection that belongs to no life."""

    def fail(self, error: BaseException) -> None:
        """The run cannot go on."""


class Hub:
    """Binds its socket when made; a context manager that closes it. `serve` receives.

    Args:
        folder: private folder (0700) for the ipc socket. Where ipc cannot be used, it is loopback tcp on a free port.
        seed: of the stream; each Blender is told.
        share: memory with each Blender, where that is possible.
    """

    def __init__(self, folder: Path, seed: int, *, share: bool = False) -> None:
        self.token = secrets.token_hex(16)
        """The run's secret: each Blender's first message must have it."""
        self.bad_messages = 0
        """Messages dropped because they could not be read, or because their sender had sent too many such."""
        self.blender = ""
        """Blender's version, if one has said it."""
        self._seed, self._share = seed, share
        self._rings: dict[Life, Ring] = {}
        self._life_of: dict[bytes, Life] = {}  # by the socket's identity
        self._identity_of: dict[Life, bytes] = {}
        self._draining = False
        self._wake: Callable[[], object] | None = None  # has what is here received
        self._bad: dict[bytes, int] = {}  # messages by identity, the latest offender last
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # Without it a message to a connection that is gone vanishes in silence.
        self._socket.router_mandatory = True
        # Leases bound what is in flight; high-water marks would drop (ROUTER) or block instead.
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.linger = 0
        self._socket.maxmsgsize = payload.MAX_PART
        path = folder / "hub"
        if zmq.has("ipc") and len(bytes(path)) <= _LONGEST_IPC_PATH:
            self._socket.bind(f"ipc://{path}")
        else:
            self._socket.bind("tcp://127.0.0.1:*")
        endpoint = self._socket.get(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.endpoint = endpoint.decode().rstrip("\0")

    def __enter__(self) -> Hub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_context(self._context)

    async def serve(self, receiver: Receiver) -> None:
        """Receive until cancelled."""
        loop = asyncio.get_running_loop()
        broken: asyncio.Future[None] = loop.create_future()

        def drain() -> None:
            if broken.done():
                return
            try:
                if self._drain(receiver):
                    loop.call_soon(drain)
            except Exception as error:
                broken.set_exception(error)

        # The socket's own descriptor: pyzmq's asyncio layer makes futures and timers for each wait, a tenth of a
        # millisecond of a round trip.
        descriptor = self._socket.fileno()
        self._wake = lambda: loop.call_soon(drain)
        try:
            loop.add_reader(descriptor, drain)
            drain()  # nobody is told again of what came before
            await broken
        except NotImplementedError:  # Windows' loop
            await self._poll(drain, broken)
        finally:
            self._wake = None
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(descriptor)

    async def _poll(self, drain: Callable[[], None], broken: asyncio.Future[None]) -> None:
        """Where a loop cannot watch a descriptor: pyzmq knows another way."""
        socket = zmq.asyncio.Socket.shadow(self._socket.underlying)
        while not broken.done():
            drain()
            await socket.poll()
        broken.result()

    def _drain(self, receiver: Receiver) -> bool:
        """Handle what has come: many messages a turn, but not so many that nothing else has one. True: there is more."""
        self._draining = True
        try:
            for _ in range(_MESSAGES_A_TURN):
                if not (message := self._received()):
                    return False
                identity, *parts = message
                self._handle(receiver, identity.bytes, parts)
            return True
        finally:
            self._draining = False

    def _received(self) -> list[zmq.Frame]:
        """A message that is here already; empty if there is none."""
        try:
            part = self._socket.recv(_DONTWAIT, copy=False)
        except zmq.Again:
            return []
        parts = [part]
        while part.more:  # recv_multipart asks the socket instead, which costs more than the receive
            part = self._socket.recv(_DONTWAIT, copy=False)
            parts.append(part)
        return parts

    def ring(self, life: Life) -> Ring | None:
        """Memory to share with this life, if there is any. Its descriptor is the caller's to close."""
        ring = Ring.create() if self._share else None
        if ring is not None:
            self._rings[life] = ring
        return ring

    # -- to Blender ---------------------------------------------------------------------------------------------

    def send_lease(self, life: Life, serial: int, index: int, since: int, params: Sequence[Any]) -> bool:
        """Lease an index. `since`: leases with a lower serial are no longer wanted. False: there is no connection."""
        fields = {"lease": serial, "index": index, "since": since}
        return self._send(life, protocol.encode(protocol.LEASE, fields, params))

    def send_stop(self, life: Life) -> None:
        """Ask it to end, if there is a connection."""
        self._send(life, protocol.encode(protocol.STOP, {"reason": ""}))

    def forget(self, life: Life) -> None:
        """This life is over."""
        self._rings.pop(life, None)
        if (identity := self._identity_of.pop(life, None)) is not None:
            del self._life_of[identity]
            self._bad.pop(identity, None)

    def _send(self, life: Life, parts: Sequence[Any]) -> bool:
        identity = self._identity_of.get(life)
        return identity is not None and self._send_to(identity, parts)

    def _send_to(self, identity: bytes, parts: Sequence[Any]) -> bool:
        try:
            self._socket.send(identity, _MORE)  # not send_multipart, which checks and combines flags for each part
            for part in parts[:-1]:
                self._socket.send(part, _MORE)
            self._socket.send(parts[-1], _DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        # A send takes in what has come, and the descriptor does not tell of that again.
        if not self._draining and self._wake is not None and int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            self._wake()
        return True

    # -- from Blender -------------------------------------------------------------------------------------------

    def _handle(self, receiver: Receiver, identity: bytes, parts: Sequence[Any]) -> None:
        if self._bad.get(identity, 0) > _TOLERATED:
            self.bad_messages += 1
            return
        try:
            life = self._life_of.get(identity)
            ring = None if life is None else self._rings.get(life)
            hold = None if ring is None else ring.hold
            message = protocol.decode([part.buffer for part in parts], hold, values=life is not None)
            if message.kind == protocol.HELLO:
                self._hello(receiver, identity, message)
            elif message.kind == protocol.BEAT:
                sender = protocol.life_of(message.fields, self.token)
                receiver.beat(sender, protocol.field({"rss": 0, **message.fields}, "rss", int))
            elif life is not None:
                self._from_known(receiver, life, message)
            else:
                if message.kind == protocol.FRAME:
                    receiver.dropped_frame()
                self._send_to(identity, protocol.encode(protocol.HELLO, {}))
        except ProtocolError as error:
            self._dropped(receiver, identity, error)

    def _dropped(self, receiver: Receiver, identity: bytes, error: ProtocolError) -> None:
        """Count a bad message, and turn away who keeps sending them: a cheap way to keep a host busy."""
        self.bad_messages += 1
        own = self._bad[identity] = self._bad.pop(identity, 0) + 1
        if len(self._bad) > _SUSPECTS:
            del self._bad[next(iter(self._bad))]
        life = self._life_of.get(identity)
        sender = "a connection that is no Blender's" if life is None else f"Blender {life.instance}"
        if self.bad_messages & (self.bad_messages - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...: never a flood
            _log.warning("Dropped a message of %s (%d so far): %s", sender, self.bad_messages, error)
        if own == _TOLERATED + 1:
            _log.warning("Not listening any more to %s: %d messages could not be read", sender, own)
            if life is not None:
                receiver.misbehaved(life, f"sent {own} messages that cannot be read, the last one because: {error};")

    def _hello(self, receiver: Receiver, identity: bytes, message: Message) -> None:
        try:
            life = protocol.life_of(message.fields, self.token)
        except ProtocolError as error:
            self._send_to(identity, protocol.encode(protocol.STOP, {"reason": str(error)}))
            if message.fields.get("token") == self.token:
                receiver.fail(error)  # one of ours: it will not get better
            raise
        if not receiver.knows(life):
            self._send_to(identity, protocol.encode(protocol.STOP, {"reason": "another life has begun"}))
            return
        receiver.beat(life)
        before = self._identity_of.get(life)
        if before == identity:
            return
        holding = protocol.field(message.fields, "holding", list)
        ready = protocol.field(message.fields, "ready", bool)
        if before is not None:
            del self._life_of[before]
        if (other := self._life_of.get(identity)) is not None:
            del self._identity_of[other]
        self._identity_of[life], self._life_of[identity] = identity, life
        self._send_to(identity, protocol.encode(protocol.WELCOME, {"version": protocol.VERSION, "seed": self._seed}))
        if ready:
            receiver.reconnected(life, holding)  # first, so that what it asks for again is not also what is new
            receiver.ready(life)

    def _from_known(self, receiver: Receiver, life: Life, message: Message) -> None:
        kind, fields = message.kind, message.fields
        if kind == protocol.FRAME:
            assert message.values is not None  # decode saw to it
            receiver.frame(life, fields["lease"], fields["index"], message.values)
        elif kind == protocol.READY:
            self.blender = protocol.field({"blender": "", **fields}, "blender", str) or self.blender
            receiver.ready(life)
        elif kind == protocol.FAILED:
            receiver.sample_failed(life, fields["lease"], fields["index"], fields["error"], fields["traceback"])
        elif kind != protocol.BYE:
            raise ProtocolError(f"Blender {life.instance} sent a {kind}, which only the host sends")
