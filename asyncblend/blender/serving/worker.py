"""Worker: Blender's end of the wire. It takes leases, makes their samples one after another, and sends the frames."""

from __future__ import annotations

import json
import os
import select
import sys
import traceback
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import zmq

from ...errors import AsyncblendError, ProtocolError, SampleError
from ...wire import payload, protocol
from ...wire.gate import show_token
from ...wire.launch import Launch
from ...wire.line import Line, LineBroken, LineMessage, gone_on, pack
from ...wire.protocol import Message
from ...wire.ring import Slots
from .contact import keep_in_touch
from .episode import NOT_THE_SAME, Episode, first_frame
from .heartbeat import Heartbeat
from .serve import Sample
from .task import encode_sample, make_task
from .timed import timed

T = TypeVar("T")

_DONTWAIT = int(zmq.DONTWAIT)  # an enumeration's own operators cost more than a receive
_MORE = int(zmq.SNDMORE)
_LINGER = 2000  # milliseconds for the last messages to leave
_SUMMARY, _TRACEBACK = 4_000, 40_000  # bytes, as JSON, of an error: they must fit into the header


class Worker:
    """Connects to the host, then answers leases until the host says STOP."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._identity = {"token": launch.token, "version": protocol.VERSION}
        self._identity |= {"instance": launch.instance, "epoch": launch.epoch}
        self._shared = Slots.inherit(launch.ring)
        self._line = Line.inherit(launch.line)
        self._offers_line = False  # never with a window, which calls no `run`
        self._sent_over_line = False  # whether the latest frame was
        self._pending: deque[Message] = deque()
        self._steps: list[Message] = []  # of pending leases
        self._episode: Episode | None = None
        self._seed = 0
        self._ready = False
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        show_token(self._socket, launch.token, launch.keys)
        if launch.silence is not None:
            keep_in_touch(self._socket, launch.silence)
        self._heartbeat = Heartbeat(self._context, launch, self._identity)

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
        self._socket.rcvtimeo = int(1000 * self._launch.beat)
        self._offers_line = self._line is not None
        while self.hear():
            if self.answer_next(sample):
                continue
            if self._line is not None and self._episode is not None and self._may_use_line(self._episode):
                if not self._play(self._episode, self._line):
                    self.hello()
            elif not (parts := self._received(wait=True)):
                self.hello()
            elif not self._receive(protocol.decode(parts)):
                return

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
        """Make the next sample that is leased, or the next frame of the open episode. Return False if there is none."""
        if self._episode is not None and self._episode.may_go_on:
            self._go_on(self._episode)
            return True
        if self._episode is None and self._pending:
            self.answer(sample, self._pending.popleft())
            return True
        return False

    def hello(self) -> None:
        """Say HELLO: at first, and after each while in which nothing was to be done.

        If the connection was lost and came back, the host knows this socket only from a HELLO.
        """
        holding = [_name_of(lease) for lease in self._pending]
        opened = [] if self._episode is None else [self._episode.name]
        about = {"ready": self._ready, "holding": holding, "open": opened, "line": self._sent_over_line}
        self._send(protocol.HELLO, **about, **self._identity)

    def _received(self, *, wait: bool = False) -> list[zmq.Frame]:
        """Return the parts of a message that is here already, or nothing. `wait`: wait for one, as long as a beat."""
        try:
            # Without a poll before, which takes longer than the receive.
            part = self._socket.recv(0 if wait else _DONTWAIT, copy=False)
        except zmq.Again:
            return []
        parts = [part]
        while part.more:
            part = self._socket.recv(_DONTWAIT, copy=False)
            parts.append(part)
        return parts

    def close(self) -> None:
        """Say BYE and close the sockets, within two seconds."""
        self._close_episode()
        self._send(protocol.BYE)
        self._heartbeat.stop()
        self._socket.close()
        self._context.term()

    def answer(self, sample: Sample, lease: Message) -> None:
        """Make one sample, and send its FRAME, or FAILED with the traceback. Or open an episode, if it is one."""
        about = {name: lease.fields[name] for name in ("pass", "lease", "index")}

        def begin() -> tuple[Any, Any]:
            made = sample(task)
            return made, first_frame(made) if isinstance(made, Generator) else made

        try:
            task = make_task(about["index"], self._seed, self._launch.instance, lease.values or {})
            (made, values), spent = timed(self._call, begin)
            if isinstance(made, Generator):
                self._open(Episode(lease, task.params, made, values, spent, self._call))
                return
            if lease.fields.get("first"):
                raise SampleError(NOT_THE_SAME.format("its sample function is no generator any more"))
            parts = encode_sample(values, self._shared)
        except Exception as error:
            self._failed(about, error)
        else:
            # ZeroMQ gets a copy, because the script may write into the same arrays for its next sample.
            self._send_parts(protocol.encode(protocol.FRAME, {**about, **spent.fields()}, parts))

    def make(self, frame: Callable[[], T]) -> T:
        """Make one frame by calling the user's code. `asyncblend.testing` overrides it."""
        return frame()

    def _call(self, function: Callable[[], T]) -> T:
        """Call the user's code. Raise also what Blender's handlers and timers raise, which Blender does not pass on."""
        before = sys.excepthook
        errors: list[BaseException] = []

        def catch(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            errors.append(error.with_traceback(trace))
            before(kind, error, trace)

        sys.excepthook = catch  # Blender calls it with them, and forgets them
        try:
            return self.make(function)
        finally:
            sys.excepthook = before
            if errors:
                raise errors[0]

    def _open(self, episode: Episode) -> None:
        self._episode = episode
        for step in self._steps:
            if _name_of(step) == episode.name:
                episode.grant(step.fields["step"], step.values)
        self._steps = [step for step in self._steps if _name_of(step) != episode.name]

    def _go_on(self, episode: Episode, line: Line | None = None) -> None:
        """Send the next frame of the open episode, over the line if it fits there, and close it if that was the last one."""
        about = {"pass": episode.name[0], "lease": episode.name[1]}
        self._sent_over_line = False
        try:
            step = episode.go_on(self._shared)
        except Exception as error:
            self._episode = None
            self._failed({**about, "index": episode.index}, error)
            return
        if step is None:
            self._send(protocol.OVER, **about)
        elif step.parts is None:
            self._send(protocol.REPLAYED, step=step.number, **about)
        elif line is not None and (message := pack(episode.name, step.number, step.parts)) is not None:
            line.send(message)
            self._sent_over_line = True
            return
        else:
            fields: dict[str, Any] = {**about, "index": episode.index, "step": step.number, "last": step.last}
            fields |= step.spent.fields()
            if step.fingerprint is not None:
                fields["fingerprint"] = step.fingerprint
            if self._may_use_line(episode):
                fields["line"] = True
            self._send_parts(protocol.encode(protocol.FRAME, fields, step.parts))
        if step is None or step.last:
            self._episode = None

    def _may_use_line(self, episode: Episode) -> bool:
        """Whether the steps of an episode may come over the line."""
        return self._offers_line and bool(episode.lease.fields.get("line"))

    def _play(self, episode: Episode, line: Line) -> bool:
        """Make the steps that come over the line, until a message comes. Return False if nothing comes for a beat."""
        both = select.poll()
        # ZeroMQ's descriptor tells of nothing that came before. But all of that was received: `hear` came last.
        both.register(int(self._socket.get(zmq.FD)), select.POLLIN)
        both.register(line.fileno(), select.POLLIN)
        if not line.pending:
            found = dict(both.poll(1000 * self._launch.beat))
            if line.fileno() not in found:
                return bool(found)
        wait = False
        try:
            # A host that sends steps so also says there when it goes on with messages, unless it stops.
            while self._episode is episode and (asked := line.receive(wait=wait)) is not None and asked.parts:
                if asked.name == episode.name and not self._make_step(episode, line, asked):
                    return True
                wait = True  # also after a step of an episode that was given up
        except (LineBroken, ProtocolError):  # the host finds the same, and goes on with messages
            self._line, self._offers_line = None, False
        return True

    def _make_step(self, episode: Episode, line: Line, asked: LineMessage) -> bool:
        """Make a step that came over the line. Return False if its answer went as a message."""
        episode.grant(asked.step, payload.decode_values(asked.parts))
        if episode.may_go_on:
            self._go_on(episode, line)
            if not self._sent_over_line:
                line.send(gone_on(episode.name, asked.step))
        return self._sent_over_line

    def _close_episode(self) -> None:
        """Close the open episode, and let its `finally` blocks run."""
        episode, self._episode = self._episode, None
        if episode is not None:
            try:
                episode.close()
            except Exception:
                traceback.print_exc()  # nobody waits for this sample any more; the host keeps what is printed

    def _drop(self, names: Collection[tuple[int, int]]) -> None:
        """Forget leases that are not begun."""
        if any(_name_of(lease) in names for lease in self._pending):
            self._pending = deque(lease for lease in self._pending if _name_of(lease) not in names)
            self._steps = [step for step in self._steps if _name_of(step) not in names]

    def _failed(self, about: Mapping[str, Any], error: Exception) -> None:
        self._send(protocol.FAILED, error=_summary(error), traceback=_traceback_of(error), **about)

    def _receive(self, message: Message) -> bool:
        """Take in a message from the host. Return False if it said STOP."""
        kind, fields = message.kind, message.fields
        if kind == protocol.LEASE:
            self._take([message])
        elif kind == protocol.LEASES:
            self._take(fields["leases"])
        elif kind == protocol.REVOKE:
            revoked = {(fields["pass"], serial) for serial in fields["leases"]}
            self._drop(revoked)
            if self._episode is not None and (name := self._episode.name) in revoked:
                self._close_episode()
                self._send(protocol.OVER, **{"pass": name[0], "lease": name[1]})
        elif kind == protocol.STEP:
            if self._episode is not None and self._episode.name == _name_of(message):
                self._episode.grant(fields["step"], message.values)
            elif any(_name_of(lease) == _name_of(message) for lease in self._pending):
                self._steps.append(message)  # else its lease was revoked
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

    def _take(self, leases: Sequence[Message]) -> None:
        """Put leases where they belong: an urgent one goes before all that are not, but after what is begun."""
        # The host sends one again if the connection was lost, as it cannot know what came of it.
        names = {_name_of(lease) for lease in leases}
        self._drop(names)
        if self._episode is not None and self._episode.name in names:
            self._close_episode()
        for lease in leases:
            place = len(self._pending)
            if lease.fields["urgent"]:
                place = next((i for i, other in enumerate(self._pending) if not other.fields["urgent"]), place)
            self._pending.insert(place, lease)

    def _send(self, kind: str, **fields: Any) -> None:
        self._send_parts(protocol.encode(kind, fields))

    def _send_parts(self, parts: Sequence[Any]) -> None:
        for part in parts[:-1]:  # not send_multipart, which looks at each part first
            self._socket.send(part, _MORE)
        self._socket.send(parts[-1])


def _about_blender() -> dict[str, Any]:
    if (bpy := sys.modules.get("bpy")) is None:  # not imported here, because a fake has none
        return {}
    from .scene_check import scene_warnings

    return {"blender": str(bpy.app.version_string), "warnings": scene_warnings()}


def _name_of(message: Message) -> tuple[int, int]:
    return message.fields["pass"], message.fields["lease"]


def _summary(error: BaseException) -> str:
    """Return the class and the message. Not str(error), which may raise for an exception of the user's."""
    whole = text = traceback.format_exception_only(type(error), error)[-1].strip()
    if isinstance(error, AsyncblendError):
        whole = text = text.removeprefix(f"{type(error).__module__}.")
    elif isinstance(error, payload.Unsendable):
        whole = text = str(error)
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
