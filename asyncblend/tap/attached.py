"""Attached: looks at the frames of a training that runs in another process of this machine."""

from __future__ import annotations

import contextlib
import itertools
import time

import zmq

from ..aio import end_context
from ..errors import ConfigError
from ..ports import HOST, VIEW
from .moment import Moment, unpacked

_FIRST = 10.0  # seconds until the first answer
_SILENCE = 60.0  # seconds without an answer, as between two epochs whose workers are others
_AGAIN = 2.0  # seconds until a question is asked again, which a training that has begun anew has never got


class Attached:
    """Asks a `Served` for one moment after another. A context manager.

    Args:
        address: A port of this machine, or HOST:PORT. Of another machine, forward its port to this one, as
            `ssh -L 9870:127.0.0.1:9870 HOST` does.

    Raises:
        ConfigError: The address is none.
    """

    def __init__(self, address: str = str(VIEW)) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536 or (host and not host.strip("[]")):
            raise _no_address(address)
        self.address: str = f"{host or HOST}:{port}"
        """As HOST:PORT."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)  # for the word that the end was read
        self._socket.setsockopt(zmq.RCVHWM, 4)
        self._socket.setsockopt(zmq.SNDHWM, 1)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # a question waits for nobody who is not there
        self._socket.setsockopt(zmq.IPV6, ":" in host)
        try:
            self._socket.connect(f"tcp://{self.address}")
        except zmq.ZMQError:
            self.__exit__()
            raise _no_address(address) from None
        self._numbers = itertools.count(1)
        self._asked, self._asked_at = b"", 0.0  # the question that is not answered yet
        self._began = self._heard = time.monotonic()
        self._answered = False

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        end_context(self._context)

    def look(self, timeout: float) -> Moment | None:
        """Return the next moment, or None if there is none in time.

        Args:
            timeout: In seconds.

        Raises:
            ConfigError: Nobody has answered for ten seconds, since the beginning.
            ProtocolError: What answers is another version of asyncblend, or something else.
        """
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            milliseconds = int(1000 * min(left, _AGAIN)) + 1
            if not self._ask():
                self._socket.poll(milliseconds, zmq.POLLOUT)  # until somebody is there
            elif self._socket.poll(milliseconds):
                number, *parts = self._socket.recv_multipart(copy=False)
                self._heard = time.monotonic()
                moment = unpacked([part.buffer for part in parts])
                # The answer to an earlier question came late, and is of the past: but after the end comes no other.
                if number.bytes == self._asked or moment.ended:
                    self._asked, self._answered = b"", True
                    if moment.ended:
                        with contextlib.suppress(zmq.Again):  # the training is gone
                            self._socket.send(b"", zmq.NOBLOCK)
                    return moment
        self._check_silence()
        return None

    @property
    def silent(self) -> bool:
        """Whether the training has not answered for so long that it has ended."""
        return self._answered and time.monotonic() - self._heard > _SILENCE

    def _ask(self) -> bool:
        """Return whether a question is asked that is not answered yet."""
        now = time.monotonic()
        if self._asked and now - self._asked_at < _AGAIN:
            return True
        number = str(next(self._numbers)).encode()
        try:
            self._socket.send(number, zmq.NOBLOCK)
        except zmq.Again:  # nobody is there
            self._asked = b""
            return False
        self._asked, self._asked_at = number, now
        return True

    def _check_silence(self) -> None:
        if not self._answered and time.monotonic() - self._began > _FIRST:
            raise ConfigError(
                f"no training can be seen at {self.address}: call dataset.view(port={self.address.rpartition(':')[2]}) in "
                f"it before its loop, and attach when its first frames have come"
            )


def _no_address(address: str) -> ConfigError:
    return ConfigError(f"an address is a port, or HOST:PORT, such as {VIEW} or {HOST}:{VIEW}; got {address!r:.100}")
