"""Served: answers those who look at a Tap from another process of this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import Any

import zmq

from ..aio import AtExit, end_context
from ..errors import ConfigError
from ..ports import HOST
from ..wire.payload import Unsendable
from .moment import Line, Moment, packed
from .tap import Tap

_NO_FRAME = 0.5  # seconds after which a look is answered without a frame
_WATCHED = 2.0  # seconds in which somebody who looks has asked again, also where processes wait for a processor
_RETRY = 1.0  # seconds until a taken port is tried again
_MAX_QUESTION = 64  # bytes: a question is its number
_log = logging.getLogger("asyncblend")


def check_port(port: int, option: str = "port=") -> None:
    """Raise ConfigError if something else listens on a port of this machine, or if it is none.

    Args:
        option: What stands before the port where it is chosen.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigError(f"{option}{port!r} is no port: they are whole numbers from 1 to 65535")
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ZeroMQ does
            trial.bind((HOST, port))
    except OSError as error:
        raise unusable(port, option, error) from None


def unusable(port: int, option: str, error: OSError) -> ConfigError:
    """Return what to raise where a port cannot be bound, for the arguments of `check_port`."""
    return ConfigError(
        f"port {port} of {HOST} cannot be used: {os.strerror(error.errno or 0)}; choose another one, such as "
        f"{option}{port % 65535 + 1}"
    )


class Served:
    """A thread that listens on a port of the loopback device, and answers each question with the next moment of a Tap.

    A question is one part with a number, at most 64 bytes; the answer is that number and the parts of a moment. Who has
    read the end says so by one more part. Nothing else is read from anybody, and nothing is unpickled.

    While the port is taken, perhaps by the worker of the epoch before, it is tried again: a training does not fail for
    its view.

    Args:
        tap: What is looked at.
        port: Of this machine.
        last: Whether its end is that of all there is to see. Otherwise those who look are not told of it, and wait for
            the next one, such as the worker of the next epoch.
    """

    def __init__(self, tap: Tap, port: int, *, last: bool = True) -> None:
        self.pid: int = os.getpid()
        """The process whose frames are seen; a forked copy of this object serves nothing."""
        self._tap, self._port, self._last = tap, port, last
        self._closing, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="asyncblend view", daemon=True)
        self._thread.start()
        _served.add(self)

    def close(self) -> None:
        """Tell those who look that it is the end, if it is, and stop listening. From any thread, also twice."""
        if self.pid != os.getpid():
            return
        self._tap.end()
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        if threading.current_thread() is not self._thread:  # a garbage collection there
            self._thread.join()
        self._wake.close()

    def _serve(self) -> None:
        context = zmq.Context()
        questions = context.socket(zmq.ROUTER)
        questions.setsockopt(zmq.MAXMSGSIZE, _MAX_QUESTION)
        questions.setsockopt(zmq.LINGER, 1000)  # for the last answers
        questions.setsockopt(zmq.SNDHWM, 1)
        try:
            if self._bind(questions):
                self._answer(questions)
        except Exception:
            _log.exception("The view of this training has ended, the training has not")
        finally:
            self._tap.end()
            self._closing.close()
            questions.close()
            end_context(context)

    def _bind(self, questions: zmq.Socket[bytes]) -> bool:
        """Bind the port as soon as it is free. Return whether it was before the end."""
        warned = False
        while True:
            try:
                questions.bind(f"tcp://{HOST}:{self._port}")
                return True
            except zmq.ZMQError as error:
                if not warned:
                    _log.warning(
                        "Port %d is taken, so this training cannot be seen there yet: %s. If this is the worker of a "
                        "dataset that its training has iterated itself before, call the dataset's close() between the two",
                        *(self._port, error),
                    )
                warned = True
            self._closing.settimeout(_RETRY)
            with contextlib.suppress(TimeoutError):
                self._closing.recv(1)
                return False

    def _answer(self, questions: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(questions, zmq.POLLIN)
        poller.register(self._closing, zmq.POLLIN)
        ended, answered, told = False, -_WATCHED, set[bytes]()
        while not ended:
            ended = any(ready is not questions for ready, _ in poller.poll())
            if ended and self._last and time.monotonic() - answered < _WATCHED:
                # Somebody who looks is about to ask again, and is to learn of the end.
                questions.poll(int(1000 * _WATCHED))
            if asked := _asked(questions):
                told = self._tell(questions, asked)
                ended, answered = bool(told) or ended, time.monotonic()
        # ZeroMQ drops what has come over a connection, and was not read yet, when that is closed.
        until = time.monotonic() + _WATCHED
        while told and questions.poll(max(0, int(1000 * (until - time.monotonic())))):
            told -= _asked(questions).keys()

    def _tell(self, questions: zmq.Socket[bytes], asked: dict[bytes, bytes]) -> set[bytes]:
        """Answer those who have asked, and return who was told of the end. Nothing of the frame is kept afterwards."""
        moment = self._tap.look(_NO_FRAME)
        # Copied as they are sent, so that a slot of shared memory is free at once.
        parts = _parts(moment if self._last else moment._replace(ended=False))
        asking = {**asked, **_asked(questions)}
        for who, number in asking.items():
            # A peer that is gone, or has not read the answer before, gets none: it asks again.
            with contextlib.suppress(zmq.Again):
                questions.send_multipart([who, number, *parts], zmq.NOBLOCK)
        return {*asking} if moment.ended else set()


def _asked(questions: zmq.Socket[bytes]) -> dict[bytes, bytes]:
    """Return who asks, and the number of each one's newest question."""
    asked: dict[bytes, bytes] = {}
    with contextlib.suppress(zmq.Again):
        while True:
            who, *parts = questions.recv_multipart(zmq.NOBLOCK)
            if len(parts) == 1:
                asked[who] = parts[0]
    return asked


def _parts(moment: Moment) -> list[Any]:
    try:
        return packed(moment)
    except Unsendable as error:
        line = Line("WARNING", f"A frame could not be shown: {error}")
        return packed(moment._replace(frame=None, log=[*moment.log, line]))


_served: AtExit[Served] = AtExit(Served.close)
