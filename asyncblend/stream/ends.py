"""Ends: what a dispatcher needs of the Blenders that it leases to, whoever runs them.

`Hub` and `Fleet` are the two ends of a fleet of this program's own; an `Attachment` is both, of one that runs elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import ProtocolError
from ..wire.launch import Life


class Sender(Protocol):
    """Takes what is told to a Blender; `Hub` says what each call means."""

    @property
    def bad_messages(self) -> int: ...
    @property
    def refused(self) -> int: ...
    def send_lease(
        self,
        life: Life,
        number: int,
        serial: int,
        index: int,
        params: Sequence[Any],
        *,
        urgent: bool = False,
        first: int = 0,
        on_demand: bool = False,
        fingerprint: Sequence[Any] = (),
        line: bool = False,
    ) -> bool: ...
    def send_step(self, life: Life, number: int, serial: int, step: int, params: Sequence[Any] = ()) -> bool: ...
    def send_revoke(self, life: Life, number: int, serials: Sequence[int]) -> None: ...
    def count_bad_line(self, life: Life, error: ProtocolError) -> None: ...


class Blenders(Protocol):
    """Knows which Blenders serve, and learns what they do; `Fleet` says what each call means."""

    @property
    def states(self) -> dict[int, str]: ...
    @property
    def restarts(self) -> int: ...
    @property
    def recycled(self) -> int: ...
    def ready_lives(self) -> list[Life]: ...
    def leased(self, life: Life) -> None: ...
    def working_since(self, life: Life, began: float | None) -> None: ...
    def goes_on(self, life: Life) -> None: ...
    def answered(self, life: Life, *, more: bool, count: int = 1) -> None: ...
