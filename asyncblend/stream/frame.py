"""Frame: one sample, as a stream delivers it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..wire.protocol import Spent


class Frame(Mapping[str, Any]):
    """A mapping with what the script's `sample` returned, by name. Arrays are numpy's and read-only; copy one to write."""

    __slots__ = ("_values", "index", "instance", "last", "params", "params_age", "spent", "step")

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        index: int,
        instance: int,
        params: Mapping[str, Any] | None = None,
        params_age: int = 0,
        step: int = 0,
        last: bool = True,
        spent: Spent | None = None,
    ) -> None:
        self._values = values
        self.index: int = index
        """Index of the sample."""
        self.instance: int = instance
        """Number of the Blender that made it."""
        self.params: Mapping[str, Any] = {} if params is None else params
        """The params that it was made with; {} for none."""
        self.params_age: int = params_age
        """How many other samples were leased after its params were drawn and before it arrived, in its pass. Where the
        training loop changes params, such as a curriculum does, it tells how late a change takes hold. A sample that is
        leased again after a crash counts once more; 0 for recorded samples."""
        self.step: int = step
        """Number of the frame in its episode, from 0; 0 where a sample is one frame."""
        self.last: bool = last
        """Whether it is the last frame of its sample. False in an episode that the host steps, which has no known end."""
        self.spent: Spent | None = spent
        """Seconds that it took in Blender: `sample`, and of that `render` and `capture`. None: that is not known, as of
        recorded samples."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return _bytes_of(self._values)

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"{name!r}; this frame has {', '.join(map(repr, self._values)) or 'nothing'}") from None

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own makes a whole message where there is none
        """Return the value of that name, or `default` if there is none."""
        return self._values.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    # Mapping's equality would compare arrays, and those have no truth value.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={_brief(value)}" for name, value in self._values.items())
        step = "" if self.step == 0 and self.last else f", step {self.step}"
        return f"<Frame {self.index}{step} from instance {self.instance}: {values}>"

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: getattr(self, name) for name in Frame.__slots__ if name != "_values"}
        return _remake, (dict(self._values), {**own, "params": dict(self.params)})


def with_params(frame: Frame) -> Mapping[str, Any]:
    """Return the values by name, and "params" if there are any."""
    return {"params": frame.params, **frame} if frame.params else frame


def _remake(values: dict[str, Any], own: dict[str, Any]) -> Frame:
    return Frame(values, **own)


def _bytes_of(values: Mapping[str, Any] | list[Any]) -> int:
    total = 0
    for value in values if isinstance(values, list) else values.values():
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, dict | list):
            total += _bytes_of(value)
    return total


def _brief(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
