"""ParamsSource: where the params of a pass come from, and what of them belongs to its saved state.

Params are a mapping, a callable, an iterator or an asynchronous iterator. Whatever they are, `draw` is called at the
moment of a lease. What an asynchronous iterator gives must be awaited before that: the dispatcher asks `ready`, which
starts to wait for one mapping, and is woken when that has come. So nothing is drawn before a Blender has room for it,
and params are never older than they must be.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from ..config import Params
from ..errors import ConfigError, ProtocolError
from ..wire import payload
from ..wire.json_text import dumps

_log = logging.getLogger("asyncblend")


class EndOfParams(Exception):
    """The iterator that gives the params has ended. Never leaves the package."""


class Drawn(NamedTuple):
    """The params of one sample, drawn once."""

    parts: list[Any]  # As they travel
    values: Mapping[str, Any]  # As Blender sees them
    granted: int = 0  # Leases of the pass before they were drawn


class Decoded(Mapping[str, Any]):
    """Params as Blender sees them, decoded when somebody looks: hardly anybody looks at those of a step."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        return payload.decode_values(self._parts)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class ParamsSource:
    """The params of one pass.

    Args:
        params: As in StreamConfig. None: there are none.
    """

    def __init__(self, params: Params | None) -> None:
        self._params = params
        self.awaited: bool = is_iterator(params) and hasattr(params, "__anext__")
        self._feed: _Feed | None = None
        self._ahead: deque[Drawn] = deque()  # restored: an asynchronous iterator gave them, no sample has them yet
        self._taken = 0  # Mappings of an iterator

    def begin(self, feeds: Feeds) -> None:
        """Await what is asynchronous with the others of the same run, until `end`."""
        if self.awaited:
            self._feed = feeds.join(self._params)

    def end(self) -> None:
        """Wait for nothing more."""
        if self._feed is not None:
            self._feed.leave()
            self._feed = None

    def ready(self) -> bool:
        """Whether `draw` may be called. If not, what it needs is awaited from now on."""
        return not self.awaited or bool(self._ahead) or (self._feed is not None and self._feed.ready())

    def draw(self, index: int, granted: int) -> Drawn:
        """Return the params of a sample, which is leased now.

        Args:
            index: The sample's index.
            granted: The number of leases of the pass before this one.

        Raises:
            EndOfParams: They are an iterator, and it has ended.
            ConfigError: They are no mapping, or a value in them cannot travel.
            BaseException: Whatever the user's code raises.
        """
        if self._ahead:
            return self._ahead.popleft()._replace(granted=granted)
        params = self._params
        if self._feed is not None:
            drawn = self._feed.take()
            self._taken += 1
            return drawn._replace(granted=granted)
        if params is None:
            return Drawn(_NONE.parts, _NONE.values, granted)  # `_replace` takes ten times as long
        if not is_iterator(params):
            return snapshot(params(index) if callable(params) else _copied(params), f" of index {index}", granted)
        try:
            values = next(cast("Iterator[Any]", params))
        except StopIteration:
            raise EndOfParams from None
        self._taken += 1
        return snapshot(values, f" of index {index}", granted)

    def flush(self) -> None:
        """Forget what was drawn and no sample has yet."""
        self._ahead.clear()
        if self._feed is not None:
            self._feed.flush()

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self, drawn: Mapping[int, Drawn], granted: int) -> dict[str, Any] | None:
        """Return the state of the params as plain data that JSON can hold. None: there are no params.

        Args:
            drawn: By position: the params of the samples that are not delivered.
            granted: The number of leases so far.

        Raises:
            ConfigError: JSON cannot hold what the `state_dict` of the params returns.
        """
        if self._params is None:
            return None
        ahead = [*self._ahead, *([self._feed.drawn] if self._feed is not None and self._feed.drawn else [])]
        return {
            "state": own_state(self._params),
            "taken": self._taken,
            "drawn": [{"position": position, **_saved(one, granted)} for position, one in sorted(drawn.items())],
            "ahead": [_saved(one, one.granted) for one in ahead],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[int, Drawn]:
        """Go on where `state` was saved, and return by position the params that were drawn, but not delivered.

        Without "state" in it, the params' own state is left as it is.

        Raises:
            ConfigError: It is no such state, or the params cannot go on from it.
        """
        try:
            drawn = {one["position"]: _restored(one) for one in state["drawn"]}
            ahead = [_restored(one) for one in state["ahead"]]
            taken = state["taken"]
            if not all(type(number) is int for number in (taken, *drawn)):
                raise TypeError("a number is none")
        except (LookupError, TypeError, ValueError, ProtocolError) as error:
            raise ConfigError(f"not a saved state of params: {state!r:.200} ({error})") from None
        own = state.get("state")
        if self._params is None:
            raise ConfigError("the saved state has params, this stream has none; give it those that it was saved with")
        if own is not None:
            load_own_state(self._params, own)
        elif taken and is_iterator(self._params) and not _has_state(self._params):
            raise ConfigError(
                f"the state was saved after {taken} params had come from an iterator without state_dict(), which "
                f"cannot be set back there; give params that have state_dict() and load_state_dict(), or a "
                f"callable(index)"
            )
        self._ahead, self._taken = deque(ahead), taken
        return drawn


class Feeds:
    """The asynchronous iterators of a run: one feed for each, so that several passes may draw from the same one.

    Args:
        wake: Called when a feed has something that was asked for.
        params: Those of the run's config. Their feed ends with the run, and all others with the last pass that draws.
    """

    def __init__(self, wake: Callable[[], None], params: Params | None) -> None:
        self._wake = wake
        self._feeds: dict[int, _Feed] = {}  # by the identity of the iterator
        self._tasks: set[asyncio.Task[None]] = set()
        self._own = self.join(params) if is_iterator(params) and hasattr(params, "__anext__") else None

    def join(self, iterator: Any) -> _Feed:
        """Return the feed of an iterator. Whoever joins it must leave it."""
        feed = self._feeds.get(id(iterator))
        if feed is None:
            feed = self._feeds[id(iterator)] = _Feed(iterator, self)
        feed.users += 1
        return feed

    async def aclose(self, seconds: float) -> None:
        """Cancel what is awaited, and return when nothing of it runs any more, at most so many seconds later."""
        if self._own is not None:
            self._own.leave()
            self._own = None
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=seconds)
            if pending:
                _log.warning("params: an asynchronous iterator goes on although it was cancelled")


class _Feed:
    """What is awaited of one asynchronous iterator: one mapping at a time, and only when it is asked for."""

    def __init__(self, iterator: Any, feeds: Feeds) -> None:
        self.users: int = 0
        self.drawn: Drawn | None = None  # The mapping that has come
        self._error: BaseException | None = None  # or why there is none
        self._iterator, self._feeds = iterator, feeds
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def ready(self) -> bool:
        """Whether `take` may be called. If not, wait for the next mapping from now on."""
        if self.drawn is not None or self._error is not None:
            return True
        if self._task is None:
            self._task = asyncio.create_task(self._next(), name="asyncblend params")  # Feeds.aclose awaits it
            self._feeds._tasks.add(self._task)
            self._task.add_done_callback(self._feeds._tasks.discard)
        return False

    def take(self) -> Drawn:
        """Return the mapping that has come, or raise why there is none."""
        error, drawn = self._error, self.drawn
        self._error = self.drawn = None
        if error is not None:
            raise error
        assert drawn is not None, "ready comes first"
        return drawn

    def flush(self) -> None:
        """Forget the mapping that has come."""
        self.drawn = None

    def leave(self) -> None:
        """Wait for nothing more, once nobody draws any more."""
        self.users -= 1
        if not self.users:
            self._closed = True
            del self._feeds._feeds[id(self._iterator)]
            if self._task is not None:
                self._task.cancel()

    async def _next(self) -> None:
        try:
            self.drawn = snapshot(await anext(self._iterator), "", 0)
        except StopAsyncIteration:
            self._error = EndOfParams()
        except BaseException as error:
            if self._closed and isinstance(error, asyncio.CancelledError):
                raise
            if self._closed:
                _log.warning("params raised when they were cancelled: %r", error)
            self._error = error  # whatever it is, it is the consumer's, as for a callable
        self._task = None
        self._feeds._wake()


def is_iterator(params: object) -> bool:
    """Whether params are an iterator of either kind. What can be called is called, even if it is an iterator too."""
    if isinstance(params, Mapping) or callable(params):
        return False
    return hasattr(params, "__next__") or hasattr(params, "__anext__")


def own_state(params: Params | None) -> Any:
    """Return what the `state_dict` of params returns, as it would come out of a JSON file. None: they have no state.

    Raises:
        ConfigError: JSON cannot hold it.
    """
    if not _has_state(params):
        return None
    state = params.state_dict()  # type: ignore[union-attr]
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"params.state_dict() must return what JSON can hold ({error}); got {state!r:.200}") from None


def load_own_state(params: Params | None, state: Any) -> None:
    """Give a state from `own_state` to params.

    Raises:
        ConfigError: They have no `load_state_dict`, or it fails.
    """
    if not _has_state(params):
        raise ConfigError(
            f"the saved state has a state of the params, but these params have no load_state_dict() and state_dict(): "
            f"{params!r:.100}; give an object of the class that it was saved with"
        )
    try:
        params.load_state_dict(state)  # type: ignore[union-attr]
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"params cannot go on from their saved state {state!r:.200}: {type(error).__name__}: {error}"
        ) from error


def _has_state(params: object) -> bool:
    if isinstance(params, Mapping):
        return False
    return all(callable(getattr(params, name, None)) for name in ("state_dict", "load_state_dict"))


def snapshot(values: Any, of: str, granted: int = 0) -> Drawn:
    """Return values as they travel.

    The training loop may change its arrays, while a lease after a crash has its first params.
    """
    try:
        tree, *arrays = payload.encode_values(values)
    except payload.Unsendable as error:
        hint = ""
        if hasattr(values, "__await__") or hasattr(values, "__anext__") or hasattr(values, "__next__"):
            getattr(values, "close", lambda: None)()  # else Python warns of a coroutine that nobody awaited
            hint = (
                "; where params are awaited, give an asynchronous iterator: call its function, and give what it returns"
            )
        raise ConfigError(f"params{of}: {error}{hint}") from None
    parts = [tree, *(array.tobytes() for array in arrays)]
    return Drawn(parts, Decoded(parts), granted)


def _copied(values: Any) -> Any:
    """Return a copy of a dict, made in one step, as the program's own thread may give it new keys meanwhile."""
    return values.copy() if type(values) is dict else values


_NONE = snapshot({}, "", 0)


def _saved(drawn: Drawn, granted: int) -> dict[str, Any]:
    tree, *arrays = drawn.parts
    return {
        "age": granted - drawn.granted,
        "tree": json.loads(bytes(tree)),
        "arrays": [base64.b64encode(array).decode() for array in arrays],
    }


def _restored(saved: Mapping[str, Any]) -> Drawn:
    """Raises LookupError, TypeError, ValueError or ProtocolError if it is not from `_saved`."""
    parts = [dumps(saved["tree"]).encode(), *(base64.b64decode(one, validate=True) for one in saved["arrays"])]
    payload.decode_values(parts)  # raises if they are none
    return Drawn(parts, Decoded(parts), -int(saved["age"]))
