"""Messages that no Blender of the run sends: random bytes, forgeries, and damaged forgeries."""

from __future__ import annotations

import random

import numpy as np

from asyncblend.wire import payload, protocol

__all__ = ["message"]


def message(rng: random.Random) -> list[bytes]:
    """Return the parts of a random message."""
    if rng.random() < 0.3:
        return [rng.randbytes(rng.randint(0, 2000)) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.01:
        return [b""] * (payload.MAX_PARTS + 1)
    parts = rng.choice(_forgeries())
    for _ in range(rng.choice((0, 1, 1, 3))):
        _damage(parts, rng)
    return parts


def _damage(parts: list[bytes], rng: random.Random) -> None:
    """Change, cut off, insert, double or remove a random piece of a message."""
    i = rng.randrange(len(parts))
    part = bytearray(parts[i])
    change = rng.randrange(5)
    if change == 0 and part:
        part[rng.randrange(len(part))] = rng.randrange(256)
    elif change == 1:
        del part[rng.randint(0, len(part)) :]
    elif change == 2:
        at = rng.randint(0, len(part))
        part[at:at] = rng.randbytes(rng.randint(1, 100))
    elif change == 3:
        parts.insert(i, parts[i])
    elif len(parts) > 1:
        del parts[i]
        return
    parts[i] = bytes(part)


def _forgeries() -> list[list[bytes]]:
    """Return a valid message of each kind, from a sender that does not know the run's token."""
    who = {"token": "0" * 32, "version": protocol.VERSION, "instance": 0, "epoch": 0}
    lease = {"pass": 0, "lease": 0, "index": 0}
    values = payload.encode_values({"pid": 1, "noise": np.zeros(1000, np.uint8)})
    messages = [
        protocol.encode(protocol.HELLO, {**who, "ready": True, "holding": []}),
        protocol.encode(protocol.HELLO, {**who, "version": protocol.VERSION + 1}),
        protocol.encode(protocol.BEAT, who),
        protocol.encode(protocol.READY, {}),
        protocol.encode(protocol.FRAME, lease, values),
        protocol.encode(protocol.FAILED, {**lease, "error": "e", "traceback": "t"}),
        protocol.encode(protocol.BYE, {}),
        protocol.encode(protocol.LEASE, {**lease, "urgent": False}, values),
        protocol.encode(protocol.LEASES, {"leases": [[0, 1, 2, False], [0, 2, 3, True]]}),
        protocol.encode(protocol.REVOKE, {"pass": 0, "leases": [0, 1]}),
        protocol.encode(protocol.WELCOME, {"version": protocol.VERSION, "seed": 1}),
        protocol.encode(protocol.STOP, {"reason": ""}),
    ]
    return [[bytes(part) for part in parts] for parts in messages]
