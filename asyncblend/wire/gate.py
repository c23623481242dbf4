"""Gate: lets nobody but this run's Blenders connect, before anything of a peer is read. Used by both sides.

ZeroMQ asks for name and password in its handshake (PLAIN, RFC 24), and puts them to a handler in the host (ZAP, RFC 27).
Who is refused never becomes a peer: it cannot send a message, and has no routing id. That matters, because libzmq counts
up the ids of a ROUTER's anonymous peers from a known number, and aborts the program when one is taken already.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import zmq

_NAME = b"asyncblend"
_MECHANISM = b"PLAIN"
_REQUEST = 8  # parts of a request with name and password
_AT_ONCE = 64
_HANDSHAKE = 10_000  # milliseconds; a peer that needs longer is cut off


def show_token(socket: zmq.Socket[Any], token: str) -> None:
    """Have a socket show the run's token whenever it connects. Call it before `connect`."""
    socket.plain_username = _NAME
    socket.plain_password = token.encode()


class Gate:
    """The host's handler. It belongs to one context, and must exist before a socket of it is bound.

    Args:
        context: The context of the sockets that it guards.
        token: What a peer must show.
        on_refused: Called for each connection that was refused.
    """

    def __init__(self, context: zmq.Context[Any], token: str, on_refused: Callable[[], object]) -> None:
        self._token, self._on_refused = token.encode(), on_refused
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def guard(self, socket: zmq.Socket[Any]) -> None:
        """Let peers of this socket in only if they show the token. Call it before `bind`."""
        socket.zap_domain = _NAME
        socket.plain_server = True
        socket.handshake_ivl = _HANDSHAKE

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there may be requests. Call `answer` then, and once before."""
        return int(self.socket.fileno())

    def answer(self) -> bool:
        """Answer up to 64 requests that are here. Return whether there may be more."""
        for _ in range(_AT_ONCE):
            try:
                request = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return False
            known = len(request) == _REQUEST and request[5] == _MECHANISM and self._shows_token(*request[6:])
            status = (b"200", b"OK") if known else (b"400", b"a wrong token")
            self.socket.send_multipart([b"1.0", request[1], *status, b"", b""])
            if not known:
                self._on_refused()
        return True

    def _shows_token(self, name: bytes, password: bytes) -> bool:
        return name == _NAME and hmac.compare_digest(password, self._token)
