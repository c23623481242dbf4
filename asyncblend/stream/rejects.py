"""Rejects: what a hub turns away or drops, counted, and logged without a flood."""

from __future__ import annotations

import logging

from ..errors import ProtocolError

_log = logging.getLogger("asyncblend")
_TOLERATED = 16  # bad messages of one connection, after which the host does not listen to it any more
_OFFENDERS = 1024  # connections whose bad messages are counted: the memory of a host that strangers talk to is bounded


class Rejects:
    """The counters of one hub. The 1st, 2nd, 4th, 8th, and so on of a kind is logged."""

    def __init__(self) -> None:
        self.bad_messages: int = 0
        """Messages dropped because they could not be read, or because their sender had sent too many such."""
        self.refused: int = 0
        """How often who did not show the run's token, or the keys of a present life, was turned away."""
        self._bad: dict[bytes, int] = {}  # bad messages by identity, the latest offender last

    def refuse(self) -> None:
        """Count who was turned away."""
        self.refused += 1
        if _is_power_of_two(self.refused):
            _log.warning(
                "Turned away who did not show this run's token, or a present Blender's key (%d so far)", self.refused
            )

    def drop(self, sender: str, error: ProtocolError) -> None:
        """Count a message that could not be read."""
        self.bad_messages += 1
        if _is_power_of_two(self.bad_messages):
            _log.warning("Dropped a message of %s (%d so far): %s", sender, self.bad_messages, error)

    def blame(self, identity: bytes, sender: str, error: ProtocolError) -> int | None:
        """Count a message that could not be read, and blame its connection: who keeps sending such keeps a host busy.

        Returns:
            How many it has sent, if this one was the last to be listened to. None: it is listened to, or was not before.
        """
        own = self._bad[identity] = self._bad.pop(identity, 0) + 1
        if len(self._bad) > _OFFENDERS:
            del self._bad[next(iter(self._bad))]
        self.drop(sender, error)
        if own != _TOLERATED + 1:
            return None
        _log.warning("Not listening any more to %s: %d messages could not be read", sender, own)
        return own

    def ignores(self, identity: bytes) -> bool:
        """Tell whether a connection is not listened to any more. Then count what it sent."""
        ignored = self._bad.get(identity, 0) > _TOLERATED
        self.bad_messages += ignored
        return ignored

    def forget(self, identity: bytes) -> None:
        """Forget a connection."""
        self._bad.pop(identity, None)


def _is_power_of_two(count: int) -> bool:
    return count & (count - 1) == 0
