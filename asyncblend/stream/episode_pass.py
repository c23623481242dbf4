"""EpisodePass: the pass of one episode whose every step is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import check_whole
from ..config import StreamConfig
from ..errors import ConfigError, EpisodeLost, InstanceError
from .direct import Direct
from .frame import Frame
from .leases import Lease
from .params import Drawn, snapshot
from .passes import Guilt, Pass

MAX_REPLAY = 10_000


class EpisodePass(Pass):
    """The pass of one episode whose every step is asked for.

    Args:
        config: Options of the stream.
        index: The sample's index.
        params: Those of its first frame. None: drawn as the stream does.
        max_replay: How many steps are replayed at most: steps whose frames have come, when a Blender has died.
        wants_line: Whether a thread of its own consumes it, which may exchange steps with Blender past the event loop.
    """

    on_demand = True

    def __init__(
        self,
        config: StreamConfig,
        index: int,
        params: Mapping[str, Any] | None = None,
        *,
        max_replay: int = MAX_REPLAY,
        wants_line: bool = False,
    ) -> None:
        check_whole("max_replay", max_replay, 0)
        if config.fleet is not None:
            raise ConfigError(
                f"an episode that is stepped keeps a Blender for itself, and those of fleet {config.fleet!r} are shared; "
                f"give a script instead of the fleet, for Blenders of this program's own"
            )
        self.wants_line = wants_line
        super().__init__(config, [index], params=params, queue_size=1, urgent=True, on_bad_sample="raise")
        self._index, self._max_replay = index, max_replay
        self.direct: Direct | None = None
        """Set while its consumer's thread exchanges steps with Blender past the event loop."""
        self._asked: dict[int, Drawn] = {}  # by step, as long as it can be replayed
        self.steps: int = 0  # How many steps were asked for

    def drawn(self, params: Mapping[str, Any] | None) -> Drawn:
        """Return the params of a step as they travel. Any thread may call it.

        Raises:
            ConfigError: They cannot travel.
        """
        return snapshot({} if params is None else params, f" of step {self.steps + 1} of index {self._index}")

    def ask(self, drawn: Drawn) -> None:
        """Want the next step."""
        self.remember(drawn)
        self.book.ask(0)

    def remember(self, drawn: Drawn) -> int:
        """Keep the params of the next step for a replay, and return its number."""
        self.steps += 1
        self._asked[self.steps] = drawn
        return self.steps

    def forget_after(self, step: int) -> None:
        """Forget what the steps were, when this one has come and they are too many to be replayed."""
        if step > self._max_replay:
            self._asked.clear()

    def params_of_step(self, step: int) -> Drawn | None:
        """Return what was asked for. None: it is the first frame, or the episode has too many steps to be replayed."""
        return self._asked.get(step)

    def arrive(self, lease: Lease[Drawn], frame: Frame, fingerprint: Sequence[Any] = ()) -> bool:
        """Queue the frame as any pass does."""
        self.forget_after(frame.step)
        return super().arrive(lease, frame, fingerprint)

    def give_back(self, lease: Lease[Drawn], guilt: Guilt = "none", why: InstanceError | None = None) -> None:
        """Take back the lease as any pass does, if its steps may be replayed."""
        steps = self.book.first_step(lease) - 1
        super().give_back(lease, guilt, why)
        if steps > self._max_replay:
            text = (
                f"the Blender of episode {self._index} died after {steps} steps, or a message was lost, and at most "
                f"{self._max_replay} steps are replayed; begin another episode, or allow more by max_replay"
            )
            self.fail(EpisodeLost(text, step=steps))
