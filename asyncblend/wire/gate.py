"""Gate: lets nobody but this run's Blenders connect, before anything of a peer is read. Used by both sides.

On this machine ZeroMQ asks for name and password in its handshake (PLAIN, RFC 24). From other machines a connection is
encrypted (CURVE, RFC 26), and the peer proves that it has the secret key of its life. Both are put to a handler in the
host (ZAP, RFC 27). Who is refused never becomes a peer: it cannot send a message, and has no routing id. That matters,
because libzmq counts up the ids of a ROUTER's anonymous peers from a known number, and aborts the program when one is
taken already.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

from ..errors import ConfigError
from .launch import Keys, Life

_NAME = b"asyncblend"
_PLAIN, _CURVE = b"PLAIN", b"CURVE"
_AT_ONCE = 64
_MONITOR = "inproc://asyncblend-gate"
_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_HANDSHAKE = 10_000  # milliseconds; a peer that needs longer is cut off


def show_token(socket: zmq.Socket[Any], token: str, keys: Keys | None = None) -> None:
    """Have a socket show that it belongs to the run whenever it connects. Call it before `connect`.

    Args:
        token: The run's.
        keys: What it encrypts with. None: nothing is encrypted.
    """
    if keys is None:
        socket.plain_username = _NAME
        socket.plain_password = token.encode()
    else:
        socket.curve_serverkey = keys.server.encode()
        socket.curve_publickey = keys.public.encode()
        socket.curve_secretkey = keys.secret.encode()


class Gate:
    """The host's handler. It belongs to one context, and must exist before a socket of it is bound.

    Args:
        context: The context of the sockets that it guards.
        token: What a peer of this machine must show.
        on_refused: Called for each connection that was refused.
        encrypted: Whether peers come from other machines. Then each must have keys that `admit` made.

    Raises:
        ConfigError: This libzmq cannot encrypt.
    """

    def __init__(
        self, context: zmq.Context[Any], token: str, on_refused: Callable[[], object], *, encrypted: bool = False
    ) -> None:
        self._token, self._on_refused = token.encode(), on_refused
        self._life_of: dict[str, Life] = {}  # by public key
        self._public = self._secret = b""  # the host's own keys
        self.encrypted = encrypted
        if encrypted:
            if not zmq.has("curve"):
                raise ConfigError(
                    f"libzmq {zmq.zmq_version()} of this Python cannot encrypt (CURVE), which connections from other "
                    f"machines must be; install pyzmq from PyPI, whose wheels can"
                )
            self._public, self._secret = zmq.curve_keypair()
        self._context = context
        self._monitor: zmq.Socket[Any] | None = None
        self.socket: Any = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def guard(self, socket: zmq.Socket[Any]) -> None:
        """Let peers of this socket in only if they show what they must. Call it before `bind`."""
        socket.zap_domain = _NAME
        socket.handshake_ivl = _HANDSHAKE
        if self.encrypted:
            socket.curve_server = True
            socket.curve_secretkey = self._secret
            # Who does not encrypt, or not for this host, fails before the handler is asked. Without a limit, as ZeroMQ's
            # thread waits where there is one, and with it all Blenders.
            socket.monitor(_MONITOR, _FAILURES)
            self._monitor = self._context.socket(zmq.PAIR)
            self._monitor.linger = self._monitor.rcvhwm = 0
            self._monitor.connect(_MONITOR)
        else:
            socket.plain_server = True

    def admit(self, life: Life) -> Keys | None:
        """Make keys for a life, in place of those that it had. None: connections are not encrypted."""
        if not self.encrypted:
            return None
        self.revoke(life)
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self._life_of[public] = life
        return Keys(self._public.decode(), public, secret)

    def revoke(self, life: Life) -> None:
        """Let a life in no more."""
        self._life_of = {public: other for public, other in self._life_of.items() if other != life}

    def life_of(self, part: zmq.Frame) -> Life | None:
        """Return the life whose keys the message of this part was encrypted with, unless it was revoked meanwhile."""
        return self._life_of.get(str(part.get("User-Id")))  # which `answer` said, and nobody can change

    @property
    def sockets(self) -> list[zmq.Socket[Any]]:
        """Its own sockets, which must be closed with the one that it guards."""
        return [self.socket] if self._monitor is None else [self.socket, self._monitor]

    def readers(self) -> dict[int, Callable[[], bool]]:
        """Return what to call when a descriptor becomes readable, and once before, again and again while it returns True."""
        readers: dict[int, Callable[[], bool]] = {int(self.socket.fileno()): self.answer}
        if self._monitor is not None:
            readers[int(self._monitor.fileno())] = self._count_failures
        return readers

    def _count_failures(self) -> bool:
        assert self._monitor is not None, "there is something to read"
        for _ in range(_AT_ONCE):
            try:
                self._monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return False
            self._on_refused()
        return True

    def answer(self) -> bool:
        """Answer up to 64 requests that are here. Return whether there may be more."""
        for _ in range(_AT_ONCE):
            try:
                request = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return False
            mechanism, credentials = request[5], request[6:]
            user = self._with_token(*credentials) if mechanism == _PLAIN else self._with_key(*credentials)
            status = (b"400", b"a wrong token or key") if user is None else (b"200", b"OK")
            self.socket.send_multipart([b"1.0", request[1], *status, user or b"", b""])
            if user is None:
                self._on_refused()
        return True

    def _with_token(self, name: bytes, password: bytes) -> bytes | None:
        good = not self.encrypted and name == _NAME and hmac.compare_digest(password, self._token)
        return name if good else None

    def _with_key(self, key: bytes = b"") -> bytes | None:
        public = z85.encode(key) if len(key) == 32 else b""
        return public if public.decode() in self._life_of else None
