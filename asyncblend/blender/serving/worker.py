"""Worker: Blender's end of the wire. It takes leases, makes their samples one after another, and sends the frames."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import zmq

from ...errors import AsyncblendError, ProtocolError
from ...wire import protocol
from ...wire.gate import show_token
from ...wire.launch import Launch
from ...wire.protocol import Message
from ...wire.ring import Slots
from .heartbeat import Heartbeat
from .serve import Sample
from .task import Task, encode_sample, make_task

_DONTWAIT = int(zmq.DONTWAIT)  # an enumeration's own operators cost more than a receive
_LINGER = 2000  # milliseconds for the last messages to leave
_SUMMARY, _TRACEBACK = 4_000, 40_000  # bytes, as JSON, of an error: they must fit into the header


class Worker:
    """Connects to the host, then answers leases until the host says STOP."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._identity = {"token": launch.token, "version": protocol.VERSION}
        self._identity |= {"instance": launch.instance, "epoch": launch.epoch}
        self._shared = Slots.inherit(launch.ring)
        self._pending: deque[Message] = deque()
        self._seed = 0
        self._ready = False
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        show_token(self._socket, launch.token)
        self._heartbeat = Heartbeat(self._context, launch.endpoint, self._identity, launch.beat)

    @property
    def served(self) -> bool:
        """Whether the script has called serve."""
        return self._ready

    def connect(self) -> None:
        """Say HELLO, and start the heartbeat."""
        # No limits: the host's leases bound what is in flight.
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.linger = _LINGER
        self._socket.connect(self._launch.endpoint)
        self.hello()
        self._heartbeat.start()

    def run(self, sample: Sample) -> None:
        """Make samples until the host says STOP."""
        self.begin()
        idle = int(1000 * self._launch.beat)
        while self.hear():
            if not self.answer_next(sample) and not self._socket.poll(idle):
                self.hello()

    def begin(self) -> None:
        """Tell the host that samples can be made."""
        self._ready = True
        self._send(protocol.READY, **_about_blender())

    def hear(self) -> bool:
        """Take in all messages that have come. Return False if the host said STOP.

        It comes before each sample, so that STOP, REVOKE and urgent leases take effect at once.
        """
        while parts := self._received():
            if not self._receive(protocol.decode(parts)):
                return False
        return True

    def answer_next(self, sample: Sample) -> bool:
        """Make the next sample that is leased. Return False if there is none."""
        if self._pending:
            self.answer(sample, self._pending.popleft())
            return True
        return False

    def hello(self) -> None:
        """Say HELLO: at first, and after each while in which nothing was to be done.

        If the connection was lost and came back, the host knows this socket only from a HELLO.
        """
        holding = [_name_of(lease) for lease in self._pending]
        self._send(protocol.HELLO, ready=self._ready, holding=holding, **self._identity)

    def _received(self) -> list[zmq.Frame]:
        """Return the parts of a message that is here already, or nothing."""
        try:
            part = self._socket.recv(_DONTWAIT, copy=False)
        except zmq.Again:
            return []
        parts = [part]
        while part.more:
            part = self._socket.recv(_DONTWAIT, copy=False)
            parts.append(part)
        return parts

    def close(self) -> None:
        """Say BYE and close the sockets, within two seconds."""
        self._send(protocol.BYE)
        self._heartbeat.stop()
        self._socket.close()
        self._context.term()

    def answer(self, sample: Sample, lease: Message) -> None:
        """Make one sample, and send its FRAME, or FAILED with the traceback."""
        about = {name: lease.fields[name] for name in ("pass", "lease", "index")}
        try:
            task = make_task(about["index"], self._seed, self._launch.instance, lease.values or {})
            with _handler_errors() as errors:
                values = self.make(sample, task)
            if errors:
                raise errors[0]
            parts = encode_sample(values, self._shared)
        except Exception as error:
            self._send(protocol.FAILED, error=_summary(error), traceback=_traceback_of(error), **about)
        else:
            # ZeroMQ gets a copy, because the script may write into the same arrays for its next sample.
            self._socket.send_multipart(protocol.encode(protocol.FRAME, about, parts))

    def make(self, sample: Sample, task: Task) -> Mapping[str, Any]:
        """Call the user's function. `asyncblend.testing` overrides it."""
        return sample(task)

    def _receive(self, message: Message) -> bool:
        """Take in a message from the host. Return False if it said STOP."""
        kind, fields = message.kind, message.fields
        if kind == protocol.LEASE:
            place = len(self._pending)
            if fields["urgent"]:
                place = next((i for i, other in enumerate(self._pending) if not other.fields["urgent"]), place)
            self._pending.insert(place, message)
        elif kind == protocol.REVOKE:
            revoked = {(fields["pass"], serial) for serial in fields["leases"]}
            self._pending = deque(lease for lease in self._pending if _name_of(lease) not in revoked)
        elif kind == protocol.WELCOME:
            protocol.check_version(fields, "the host")
            self._seed = fields["seed"]
        elif kind == protocol.HELLO:
            self.hello()
        elif kind == protocol.STOP:
            if fields["reason"]:
                print(f"asyncblend: stopped by the host: {fields['reason']}", flush=True)
            return False
        else:
            raise ProtocolError(f"the host sent a {kind}, which only Blender's side sends")
        return True

    def _send(self, kind: str, **fields: Any) -> None:
        self._socket.send_multipart(protocol.encode(kind, fields))


def _about_blender() -> dict[str, Any]:
    if (bpy := sys.modules.get("bpy")) is None:  # not imported here, because a fake has none
        return {}
    from .scene_check import scene_warnings

    return {"blender": str(bpy.app.version_string), "warnings": scene_warnings()}


def _name_of(lease: Message) -> tuple[int, int]:
    return lease.fields["pass"], lease.fields["lease"]


@contextlib.contextmanager
def _handler_errors() -> Iterator[list[BaseException]]:
    """Collect the exceptions of Blender's handlers and timers, which Blender hands to sys.excepthook and forgets."""
    before, errors = sys.excepthook, list[BaseException]()

    def catch(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        errors.append(error.with_traceback(trace))
        before(kind, error, trace)

    sys.excepthook = catch
    try:
        yield errors
    finally:
        sys.excepthook = before


def _summary(error: BaseException) -> str:
    """Return the class and the message. Not str(error), which may raise for an exception of the user's."""
    whole = text = traceback.format_exception_only(type(error), error)[-1].strip()
    if isinstance(error, AsyncblendError):
        whole = text = text.removeprefix(f"{type(error).__module__}.")
    while len(json.dumps(text)) > _SUMMARY:  # as JSON one character may take twelve bytes
        text = text[: -max(1, len(text) // 10)]
    return text if text == whole else f"{text}[...]"


def _traceback_of(error: BaseException) -> str:
    """Return the end of the traceback, without the package's own frames above the user's function.

    Of an error that the package raised on purpose, its own frames below are left out too: the message says all, and the
    last line is the user's own, which called us.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(package):
        trace = trace.tb_next
    told = traceback.TracebackException(type(error), error, trace)
    while isinstance(error, AsyncblendError) and told.stack and told.stack[-1].filename.startswith(package):
        told.stack.pop()
    if not told.stack and told.__cause__ is told.__context__ is None:
        return ""  # it would only repeat the message
    whole = text = "".join(told.format())
    while len(json.dumps(text)) > _TRACEBACK:
        text = text[max(1, len(text) // 10) :]
    return text if text == whole else "[...]" + text
