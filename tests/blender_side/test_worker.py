"""The worker loop in a thread, against a real socket that plays the host."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import zmq

from asyncblend.blender.serving.task import Task
from asyncblend.blender.serving.worker import Worker
from asyncblend.wire import payload, protocol
from asyncblend.wire.gate import Gate
from asyncblend.wire.launch import Launch
from asyncblend.wire.protocol import Message
from asyncblend.wire.request import Request, encode_leases

LIMIT = 30  # seconds; the bound of failure of every wait
TOKEN = "secret"
NO_PARAMS = payload.encode_values({})
Name = tuple[int, int]


class PatientWorker(Worker):
    """A worker that reads no fewer messages than the host has sent before it begins the next sample.

    ZeroMQ delivers in a thread of its own, so without this a message might come after the next sample has begun.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self._unread, self._lock = 0, threading.Lock()

    def expect_one(self) -> None:
        """Note that the host is about to send a message."""
        with self._lock:
            self._unread += 1

    def _received(self, *, wait: bool = False) -> list[zmq.Frame]:
        with self._lock:
            expected = self._unread > 0
        if expected:
            assert self._socket.poll(1000 * LIMIT), "the host's message did not come"
        parts = super()._received(wait=wait)
        with self._lock:
            self._unread -= bool(parts)
        return parts


class Host:
    """The host's socket, and a worker in a thread whose samples wait until the test lets them go on."""

    def __init__(self, folder: str) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._gate = Gate(self._context, TOKEN, lambda: None)
        self._gate.guard(self._socket)
        self._socket.bind(f"ipc://{folder}/host")
        self.worker = PatientWorker(_launch(f"ipc://{folder}/host", folder))
        self.begun: queue.Queue[int] = queue.Queue()
        """Indices of samples that were begun."""
        self._go_on = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="worker")
        self._thread.start()
        hello = self.receive()
        assert hello.kind == protocol.HELLO
        assert hello.fields["holding"] == []
        self.send(protocol.WELCOME, version=protocol.VERSION, seed=5)
        assert self.receive().kind == protocol.READY

    def _run(self) -> None:
        self.worker.connect()
        self.worker.run(self._sample)
        self.worker.close()

    def _sample(self, task: Task) -> Mapping[str, Any]:
        self.begun.put(task.index)
        assert self._go_on.acquire(timeout=LIMIT)
        if task.params.get("fail"):
            raise ValueError("as the test wished")
        return {"n": task.index}

    def receive(self) -> Message:
        """Wait for the worker's next message that is no heartbeat."""
        while True:
            for _ in range(100 * LIMIT):
                self._gate.answer()
                if self._socket.poll(10):
                    break
            else:
                pytest.fail("the worker sends nothing")
            identity, *parts = self._socket.recv_multipart()
            message = protocol.decode(parts)
            if message.kind != protocol.BEAT:
                self._identity = identity
                return message

    def send(self, kind: str, values: Any = (), **fields: Any) -> None:
        """Send the worker a message."""
        self.worker.expect_one()
        self._socket.send_multipart([self._identity, *protocol.encode(kind, fields, values)])

    def lease(self, number: int, serial: int, index: int, *, urgent: bool = False, **params: Any) -> None:
        """Lease an index of a pass."""
        fields = {"pass": number, "lease": serial, "index": index, "urgent": urgent}
        self.send(protocol.LEASE, payload.encode_values(params), **fields)

    def leases(self, *names: Name, urgent: int = -1) -> None:
        """Lease samples by one message; the index of each is ten times its serial. `urgent`: the pass that is urgent."""
        requests = [Request(name, 10 * name[1], payload.encode_values({}), urgent=name[0] == urgent) for name in names]
        self.worker.expect_one()
        (parts,) = encode_leases(requests)
        self._socket.send_multipart([self._identity, *parts])

    def revoke(self, number: int, *serials: int) -> None:
        """Revoke leases of a pass."""
        self.send(protocol.REVOKE, **{"pass": number, "leases": list(serials)})

    def begin(self, number: int, serial: int, index: int, **params: Any) -> None:
        """Lease an index, and wait until its sample is being made."""
        self.lease(number, serial, index, **params)
        assert self.begun.get(timeout=LIMIT) == index

    def answers(self, count: int) -> list[tuple[str, int, int, int]]:
        """Let so many samples go on. Return kind, pass, lease and index of their answers."""
        self._go_on.release(count)
        found = []
        for _ in range(count):
            kind, fields, _ = self.receive()
            found.append((kind, fields["pass"], fields["lease"], fields["index"]))
        return found

    def names(self, count: int) -> list[Name]:
        """Let so many samples go on. Return pass and lease of their frames."""
        answers = self.answers(count)
        assert {kind for kind, *_ in answers} == {protocol.FRAME}
        return [(number, serial) for _, number, serial, _ in answers]

    def holding(self) -> list[Name]:
        """Ask for HELLO. Return which leases the worker says that it holds."""
        self.send(protocol.HELLO)
        message = self.receive()
        assert message.kind == protocol.HELLO
        return protocol.pairs(message.fields, "holding")

    def stop(self) -> None:
        """End the worker, which has then answered all that was leased and not revoked."""
        self.send(protocol.STOP, reason="")
        assert self.receive().kind == protocol.BYE

    def close(self) -> None:
        self._go_on.release(1000)
        if self._thread.is_alive():
            self.send(protocol.STOP, reason="")
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        self._context.destroy(linger=0)


def _launch(endpoint: str, folder: str) -> Launch:
    return Launch(
        endpoint=endpoint, token=TOKEN, instance=0, epoch=0, beat=LIMIT, kind="fake", script="", script_args=[],
        scene=None, factory_startup=True, autoexec=True, threads=None, gpu=False, show=False, lifeline=None,
        ring=None, line=None, packages=folder, report=f"{folder}/report.json",
    )  # fmt: skip


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        host = Host(folder)
        try:
            yield host
        finally:
            host.close()


def test_leases_are_answered_in_their_order(host: Host) -> None:
    """Frames and failures name the pass, the lease and the index that they answer."""
    host.begin(0, 0, 7)
    host.lease(3, 0, 7)
    host.lease(0, 1, 9, fail=True)
    assert host.answers(3) == [("frame", 0, 0, 7), ("frame", 3, 0, 7), ("failed", 0, 1, 9)]
    host.stop()


def test_an_urgent_lease_goes_before_pending_ones(host: Host) -> None:
    """An urgent lease goes after the sample that is being made, and before all leases that are not begun."""
    host.begin(0, 0, 0)
    host.lease(0, 1, 1)
    host.lease(0, 2, 2)
    host.lease(1, 0, 50, urgent=True)
    assert host.names(4) == [(0, 0), (1, 0), (0, 1), (0, 2)]
    host.stop()


def test_leases_of_one_message_are_leases_of_their_own(host: Host) -> None:
    """They keep their order, urgent ones overtake, one may be revoked, and what comes again is made once."""
    host.begin(0, 0, 0)
    host.leases((0, 1), (0, 2), (0, 3))
    host.leases((0, 4), (1, 0), (0, 2), urgent=1)
    host.revoke(0, 3)
    assert host.answers(5) == [
        ("frame", 0, 0, 0), ("frame", 1, 0, 0), ("frame", 0, 1, 10), ("frame", 0, 4, 40), ("frame", 0, 2, 20)
    ]  # fmt: skip
    host.stop()


def test_an_urgent_lease_goes_after_other_urgent_ones(host: Host) -> None:
    """Urgent leases keep their order among themselves, also when others come between them."""
    host.begin(0, 0, 0)
    host.lease(1, 0, 50, urgent=True)
    host.lease(0, 1, 1)
    host.lease(2, 0, 60, urgent=True)
    host.lease(0, 2, 2)
    host.lease(3, 0, 70, urgent=True)
    assert host.names(6) == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 2)]
    host.stop()


def test_revoked_leases_are_not_begun(host: Host) -> None:
    """Revoked leases are neither begun nor answered; all others are, also those of other passes with their serials."""
    host.begin(0, 0, 0)
    for serial in (1, 2, 3):
        host.lease(0, serial, serial)
        host.lease(1, serial, 10 + serial, urgent=serial == 3)
    host.revoke(0, 1, 3)
    host.revoke(1, 3)
    assert host.names(4) == [(0, 0), (1, 1), (0, 2), (1, 2)]
    host.stop()
    assert list(host.begun.queue) == [11, 2, 12]


def test_revoking_what_is_begun_or_unknown_changes_nothing(host: Host) -> None:
    """The sample that is being made is answered although it is revoked, and unknown leases are no error."""
    host.begin(0, 0, 0)
    host.lease(0, 1, 1)
    host.revoke(0, 0, 17)
    host.revoke(5, 1)
    assert host.names(2) == [(0, 0), (0, 1)]
    host.stop()


def test_a_revoked_index_may_be_leased_again(host: Host) -> None:
    """A lease that follows the revoked one is rendered, with its own params."""
    host.begin(0, 0, 0)
    host.lease(0, 1, 1, fail=True)
    host.revoke(0, 1)
    host.lease(0, 2, 1, fail=False)
    assert host.names(2) == [(0, 0), (0, 2)]
    host.stop()


def test_stop_ends_the_worker_before_pending_leases(host: Host) -> None:
    """After STOP the worker begins no sample, not even an urgent one."""
    host.begin(0, 0, 0)
    host.lease(0, 1, 1)
    host.lease(1, 0, 50, urgent=True)
    host.send(protocol.STOP, reason="")
    assert host.names(1) == [(0, 0)]
    assert host.receive().kind == protocol.BYE
    assert host.begun.empty()


@pytest.mark.parametrize("kind", [protocol.READY, protocol.FRAME])
def test_what_only_blender_sends_is_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's loop raises for a message that only Blender's side sends."""
    fields: Mapping[str, Any] = {"pass": 0, "lease": 0, "index": 0} if kind == protocol.FRAME else {}
    raised: list[BaseException] = []
    run: Callable[..., None] = Worker.run

    def run_and_note(self: Worker, sample: Any) -> None:
        try:
            run(self, sample)
        except BaseException as error:
            raised.append(error)

    monkeypatch.setattr(Worker, "run", run_and_note)
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        host = Host(folder)
        host.send(kind, NO_PARAMS if kind == protocol.FRAME else (), **fields)
        assert host.receive().kind == protocol.BYE
        host.close()
    (error,) = raised
    assert f"the host sent a {kind}" in str(error)


def test_hello_names_what_is_not_begun(host: Host) -> None:
    """The answer to the host's HELLO has pass and lease of all pending leases, in their order, and nothing answered."""
    host.begin(0, 0, 0)
    host.lease(0, 1, 1)
    host.lease(0, 2, 2)
    host.lease(1, 2, 12)
    host.lease(2, 0, 50, urgent=True)
    host.revoke(0, 2)
    host.send(protocol.HELLO)
    (first,) = host.names(1)
    assert first == (0, 0)
    hello = host.receive()
    assert (hello.kind, hello.fields["ready"]) == (protocol.HELLO, True)
    assert protocol.pairs(hello.fields, "holding") == [(2, 0), (0, 1), (1, 2)]
    assert host.names(3) == [(2, 0), (0, 1), (1, 2)]
    assert host.holding() == []
    host.stop()
