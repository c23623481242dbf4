"""Hub: the host's end of the wire. One ROUTER socket, bound for one run, that every Blender connects to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from ..aio import end_context
from ..config import cores
from ..errors import ConfigError, ProtocolError
from ..fleet.place import Network
from ..wire import payload, protocol
from ..wire.gate import Gate
from ..wire.launch import Host, Life
from ..wire.protocol import Message, Name, Step, UnreadableValues, WrongToken, WrongVersion
from ..wire.request import Request, encode_leases
from ..wire.ring import Ring
from .ends import Answers, Lives
from .rejects import Rejects

_log = logging.getLogger("asyncblend")
_LONGEST_IPC_PATH = 100  # bytes; the limit is 107 on Linux, 103 on macOS
_MESSAGES_A_TURN = 64
_DECRYPTING = 4  # threads at most
_DONTWAIT = int(zmq.DONTWAIT)  # the enumeration's own operators cost more than a send
_POLLIN = int(zmq.POLLIN)
_MORE = _DONTWAIT | int(zmq.SNDMORE)
_COPIED = 1 << 16  # bytes; with shared memory all arrays that are sent are smaller
_WARNINGS, _WARNING = 64, 6000  # texts about scenes that are logged in one run, and characters of each


class Hub(contextlib.AbstractContextManager["Hub"]):
    """Binds its socket when it is made; a context manager that closes it. `serve` receives.

    Args:
        folder: A private folder (mode 0700) for the ipc socket. Where ipc cannot be used, the socket is bound to a
            free port of loopback tcp.
        seed: The stream's; each Blender is told.
        rings: The memory that is shared with each life, where there is any.
        network: For Blenders on other machines: what they reach this one by. Then all connections are encrypted.

    Raises:
        ConfigError: The socket cannot be bound to that address, or this libzmq cannot encrypt.
    """

    def __init__(self, folder: Path, seed: int, rings: Mapping[Life, Ring], network: Network | None = None) -> None:
        self.token: str = secrets.token_hex(16)  # The run's secret: each Blender's first message must have it
        self.blender: str = ""  # Blender's version, once an instance has said it
        self._seed, self._rings, self._network = seed, rings, network
        self._life_of: dict[bytes, Life] = {}  # by the socket's identity
        self._identity_of: dict[Life, bytes] = {}
        self._leases: dict[Life, list[Request]] = {}  # that wait for `send_leases`
        self._unsent: list[tuple[Life, Sequence[Name]]] = []
        self._warned: set[str] = set()
        self._draining = False
        self._sender: Life | None = None  # whose keys the message at hand was encrypted with
        self._wake: Callable[[], object] | None = None  # schedules the receiving of what is here
        self._broken: asyncio.Future[None] | None = None  # done when nothing can be received any more
        self._rejects = Rejects()
        # Decrypting takes most of what a frame costs here, and is done in ZeroMQ's threads: each connection has one of them.
        threads = 1 if network is None else min(_DECRYPTING, cores())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(threads)
        self._gate = Gate(self._context, self.token, self._rejects.refuse, encrypted=network is not None)
        self._socket = self._context.socket(zmq.ROUTER)
        self._gate.guard(self._socket)
        # A context that is collected waits for its open sockets, which nobody may close any more: for ever.
        self._end = weakref.finalize(self, end_context, self._context, self._socket, *self._gate.sockets)
        # Without it a message to a connection that is gone vanishes in silence.
        self._socket.router_mandatory = True
        # Leases bound what is in flight; high-water marks would drop (ROUTER) or block instead.
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.linger = 0
        self._socket.maxmsgsize = payload.MAX_PIECE
        path = folder / "hub"
        if network is not None:
            self._bind_to(network)
        else:
            by_path = zmq.has("ipc") and len(bytes(path)) <= _LONGEST_IPC_PATH
            self._bind_here(f"ipc://{path}" if by_path else "tcp://127.0.0.1:*", by_path=by_path)
        endpoint = self._socket.get(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.endpoint: str = endpoint.decode().rstrip("\0")

    def _bind_here(self, address: str, *, by_path: bool) -> None:
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._end()
            advice = ": make room in the temporary folder, or set TMPDIR to another one" if by_path else ""
            raise ConfigError(f"Blender cannot connect to {address} ({error.strerror}){advice}") from None

    def _bind_to(self, network: Network) -> None:
        self._socket.ipv6 = v6 = ":" in network.address
        address = f"[{network.address}]" if v6 else network.address
        port = "*" if network.port is None else network.port
        try:
            self._socket.bind(f"tcp://{address}:{port}")
        except zmq.ZMQError as error:
            self._end()
            raise ConfigError(
                f"nobody can connect to {address}:{port} ({error.strerror}): give an address of this machine's own that the "
                f"others reach it by, and a port that is free"
            ) from None

    def host_of(self, life: Life) -> Host:
        """Return where a life finds this host. From then on it may connect, until it is forgotten."""
        silence = None if self._network is None else self._network.silence
        return Host(self.endpoint, self.token, self._gate.admit(life), silence)

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def bad_messages(self) -> int:
        """Messages dropped because they could not be read, or because their sender had sent too many such."""
        return self._rejects.bad_messages

    @property
    def refused(self) -> int:
        """How often who did not show the run's token, or the keys of a present life, was turned away."""
        return self._rejects.refused

    def count_bad_line(self, life: Life, error: ProtocolError) -> None:
        """Count what came over a Blender's line and is no message."""
        self._rejects.drop(f"Blender {life.instance}", error)

    def disown(self) -> None:
        """In a forked copy of this process: neither send nor receive any more. libzmq would never return there."""
        self._end.detach()
        self._identity_of.clear()
        self._life_of.clear()
        if self._broken is not None:
            self._broken.cancel()

    async def serve(self, lives: Lives, answers: Answers) -> None:
        """Receive until cancelled."""
        loop = asyncio.get_running_loop()
        broken = self._broken = loop.create_future()

        def reader(receive: Callable[[], bool]) -> Callable[[], None]:
            def read() -> None:
                if broken.done():  # or cancelled
                    return
                try:
                    if receive():
                        loop.call_soon(read)
                except Exception as error:
                    broken.set_exception(error)

            return read

        drain = reader(lambda: self._drain(lives, answers))

        # The sockets' own descriptors: pyzmq's asyncio layer makes futures and timers for each wait, which cost a
        # tenth of a millisecond of a round trip.
        admitting = {descriptor: reader(answer) for descriptor, answer in self._gate.readers().items()}
        readers = {self._socket.fileno(): drain, **admitting}
        self._wake = lambda: loop.call_soon(drain)
        try:
            for descriptor, read in readers.items():
                loop.add_reader(descriptor, read)
                read()  # the descriptor does not tell again of what came before
            await broken
        finally:
            self._wake = None
            for descriptor in readers:
                loop.remove_reader(descriptor)

    def _drain(self, lives: Lives, answers: Answers) -> bool:
        """Handle up to 64 messages, so that the loop's other work has its turn. Return whether there may be more."""
        self._draining = True
        answers.begin_turn()
        try:
            for _ in range(_MESSAGES_A_TURN):
                if not (message := self._received()):
                    return False
                identity = message[0].bytes
                if self._gate.encrypted:
                    self._sender = self._gate.life_of(message[0])
                    if self._sender is None:
                        # Its keys were revoked while the connection was open, so it is asked to end.
                        self._rejects.refuse()
                        self._send_to(identity, protocol.encode(protocol.STOP, {"reason": "another life has begun"}))
                        continue
                self._handle(lives, answers, identity, message[1:])
            return True
        finally:
            self._draining = False
            answers.end_turn()

    def _received(self) -> list[zmq.Frame]:
        """Return the parts of a message that is here already, or nothing."""
        try:
            part = self._socket.recv(_DONTWAIT, copy=False)
        except zmq.Again:
            return []
        parts = [part]
        while part.more:  # recv_multipart asks the socket instead, which costs more than the receive
            part = self._socket.recv(_DONTWAIT, copy=False)
            if len(parts) <= payload.MAX_PARTS + 1:  # the identity and one too many are enough to refuse it
                parts.append(part)
        return parts

    # -- to Blender ---------------------------------------------------------------------------------------------

    def add_lease(self, life: Life, request: Request) -> bool:
        """Lease an index of a pass, at the next `send_leases` or before the next message to that life.

        Returns:
            Whether the Blender is connected, as far as is known now.
        """
        if life not in self._identity_of:
            return False
        if (waiting := self._leases.get(life)) is None:
            self._leases[life] = [request]
        else:
            waiting.append(request)
        return True

    def send_leases(self) -> Sequence[tuple[Life, Sequence[Name]]]:
        """Send the leases, those of one life in as few messages as it takes.

        Returns:
            The names of those that could not be sent since the last time, by life: it is not connected now.
        """
        for life in list(self._leases):
            self._send_waiting(life)
        unsent, self._unsent = self._unsent, []
        return unsent

    def send_step(self, life: Life, number: int, serial: int, step: int, params: Sequence[Any] = ()) -> bool:
        """Let an episode make another step, with its params if it is on demand. Return False if it is not connected."""
        return self._send(life, protocol.encode(protocol.STEP, {"pass": number, "lease": serial, "step": step}, params))

    def send_revoke(self, life: Life, number: int, serials: Sequence[int]) -> None:
        """Ask a Blender not to begin these leases of a pass."""
        self._send(life, protocol.encode(protocol.REVOKE, {"pass": number, "leases": list(serials)}))

    def send_stop(self, life: Life) -> None:
        """Ask a Blender to end."""
        self._send(life, protocol.encode(protocol.STOP, {"reason": ""}))

    def forget(self, life: Life) -> None:
        """Listen no more to a life that is over."""
        self._gate.revoke(life)
        self._leases.pop(life, None)
        if (identity := self._identity_of.pop(life, None)) is not None:
            del self._life_of[identity]
            self._rejects.forget(identity)

    def _send_waiting(self, life: Life) -> None:
        requests = self._leases.pop(life)
        identity = self._identity_of[life]  # `forget` would have dropped them
        if not all(self._send_to(identity, parts) for parts in encode_leases(requests)):
            self._unsent.append((life, [request.name for request in requests]))

    def _send(self, life: Life, parts: Sequence[Any]) -> bool:
        if life in self._leases:  # what is said of a lease comes after it
            self._send_waiting(life)
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

    def _handle(self, lives: Lives, answers: Answers, identity: bytes, parts: Sequence[zmq.Frame]) -> None:
        if self._rejects.ignores(identity):
            return
        life = self._life_of.get(identity)
        try:
            if life is not None and self._sender not in (None, life):  # a peer may choose its identity
                raise ProtocolError(f"a message with the keys of {self._sender} on the connection of {life}")
            ring = None if life is None else self._rings.get(life)
            hold = None if ring is None else ring.hold
            # Small ones are copied: a `zmq.Frame` that the user's thread frees looks for signals, and loses a Ctrl-C.
            buffers = [part.bytes if len(part) < _COPIED else part.buffer for part in parts]
            message = protocol.decode(buffers, hold, values=life is not None)
            kind, fields = message.kind, message.fields
            if kind == protocol.FRAME and life is not None:
                assert message.values is not None  # decode saw to it
                step = Step.of(fields)
                answers.frame(life, fields["pass"], fields["lease"], fields["index"], message.values, step)
            elif kind == protocol.REPLAYED and life is not None:
                answers.replayed(life, fields["pass"], fields["lease"])
            elif kind == protocol.OVER and life is not None:
                answers.over(life, fields["pass"], fields["lease"])
            elif kind == protocol.BEAT:
                own = self._rings.get(sender := self._claimed(fields))
                lives.beat(sender, protocol.field({"rss": 0, **fields}, "rss", int), 0 if own is None else own.lost)
            elif kind == protocol.HELLO:
                self._hello(lives, answers, identity, message)
            elif life is None:
                if kind == protocol.FRAME:
                    answers.dropped_frame()
                self._send_to(identity, protocol.encode(protocol.HELLO, {}))
            elif kind == protocol.READY:
                self._note_version(answers, life, protocol.field({"blender": "", **fields}, "blender", str))
                self._warn(protocol.texts({"warnings": [], **fields}, "warnings"))
                lives.ready(life)
            elif kind == protocol.FAILED:
                error, traceback = fields["error"], fields["traceback"]
                answers.sample_failed(life, fields["pass"], fields["lease"], fields["index"], error, traceback)
            elif kind != protocol.BYE:
                raise ProtocolError(f"Blender {life.instance} sent a {kind}, which only the host sends")
        except ProtocolError as error:
            # First, so that who is expelled for it holds a lease, and a sample that is never readable is blamed.
            if isinstance(error, UnreadableValues) and life is not None and error.kind == protocol.FRAME:
                fields = error.fields
                answers.unreadable(life, fields["pass"], fields["lease"], last=fields.get("last", True))
            culprit = self._life_of.get(identity)
            name = "a connection that is no Blender's" if culprit is None else f"Blender {culprit.instance}"
            count = self._rejects.blame(identity, name, error)
            if count is not None and culprit is not None:
                lives.expel(culprit, f"sent {count} messages that cannot be read, the last one because: {error};")

    def _note_version(self, answers: Answers, life: Life, version: str) -> None:
        """Note Blender's version. Other machines may have another one."""
        self.blender = self.blender or version
        if self._network is not None and not self._network.mixed_blenders and version != self.blender:
            answers.fail(
                ConfigError(
                    f"Blender {life.instance} is {version or 'of no version'}, on a node of the cluster, but others are "
                    f"{self.blender or 'of none'}, and their pixels differ; install the same version on all nodes, or give "
                    f"the Cluster mixed_blenders=True"
                )
            )

    def _warn(self, texts: Sequence[str]) -> None:
        """Log what Blender found in its scene: each text once, as all instances and lives have the same scene."""
        for text in (text[:_WARNING] for text in texts):
            if text not in self._warned and len(self._warned) < _WARNINGS:
                self._warned.add(text)
                _log.warning("%s", text)

    def _claimed(self, fields: Mapping[str, Any]) -> Life:
        """Return which life a message says that it is of, as `protocol.life_of` does."""
        life = protocol.life_of(fields, self.token)
        if self._sender is not None and life != self._sender:
            raise ProtocolError(f"a message with the keys of {self._sender} says that it is of {life}")
        return life

    def _hello(self, lives: Lives, answers: Answers, identity: bytes, message: Message) -> None:
        try:
            life = self._claimed(message.fields)
        except (WrongToken, WrongVersion) as error:
            self._send_to(identity, protocol.encode(protocol.STOP, {"reason": str(error)}))
            if isinstance(error, WrongVersion):
                # One of our own Blenders, as it has the token: it will not get better.
                answers.fail(ProtocolError(str(error)))
            raise
        if not lives.is_current(life):
            self._send_to(identity, protocol.encode(protocol.STOP, {"reason": "another life has begun"}))
            return
        lives.beat(life, 0)
        before = self._identity_of.get(life)
        if before == identity:
            return
        holding, ready = protocol.pairs(message.fields, "holding"), protocol.field(message.fields, "ready", bool)
        opened = protocol.pairs({"open": [], **message.fields}, "open")
        by_line = protocol.field({"line": False, **message.fields}, "line", bool)
        if before is not None:
            del self._life_of[before]
        if (other := self._life_of.get(identity)) is not None:
            del self._identity_of[other]
        self._identity_of[life], self._life_of[identity] = identity, life
        self._send_to(identity, protocol.encode(protocol.WELCOME, {"version": protocol.VERSION, "seed": self._seed}))
        if ready:
            # First what it lost on the old connection, then, since it is ready, what is new.
            answers.reconnected(life, holding, opened, by_line=by_line)
            lives.ready(life)
