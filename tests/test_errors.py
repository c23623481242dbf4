"""The exception tree: its shape is public, and DataLoader workers pickle it."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

import asyncblend
from asyncblend import errors

TREE: dict[str, tuple[type[BaseException], ...]] = {
    "AsyncblendError": (Exception,),
    "ConfigError": (errors.AsyncblendError, ValueError),
    "BlenderNotFound": (errors.AsyncblendError, FileNotFoundError),
    "InstanceError": (errors.AsyncblendError,),
    "InstanceExited": (errors.InstanceError,),
    "StartTimeout": (errors.InstanceError, TimeoutError),
    "FrameTimeout": (errors.InstanceError, TimeoutError),
    "CrashLoop": (errors.InstanceError,),
    "SampleError": (errors.AsyncblendError,),
    "ProtocolError": (errors.AsyncblendError,),
    "RecordingError": (errors.AsyncblendError,),
    "StreamClosed": (errors.AsyncblendError,),
}

INSTANCE = {"instance": 3, "log_tail": "Fra:1 Mem:8M\nError: out of memory"}
DATA: dict[str, dict[str, Any]] = {
    "InstanceError": INSTANCE,
    "InstanceExited": {**INSTANCE, "returncode": -11},
    "StartTimeout": INSTANCE,
    "FrameTimeout": INSTANCE,
    "CrashLoop": INSTANCE,
    "SampleError": {"index": 17, "traceback": "Traceback (most recent call last):\n..."},
    "RecordingError": {"path": "cubes/shard-000003.tar", "recorded": 300},
}
MESSAGE = "it went wrong:\n  line two, grüß 'quoted' %s {}"


def make(name: str, message: str, **data: Any) -> errors.AsyncblendError:
    error = getattr(errors, name)(message, **data)
    assert isinstance(error, errors.AsyncblendError)
    return error


def check_same(copied: BaseException, error: BaseException) -> None:
    assert copied is not error
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert copied.args == error.args
    assert vars(copied) == vars(error)


def test_the_tree_is_complete() -> None:
    """Every exception of the module is in the tree, and public."""
    classes = {n for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, BaseException)}
    assert classes == set(TREE) == set(errors.__all__)


@pytest.mark.parametrize("name", TREE)
def test_bases_are_as_documented(name: str) -> None:
    """Each class has exactly the bases of the tree, so that `except` of a builtin catches it too."""
    assert getattr(errors, name).__bases__ == TREE[name]


@pytest.mark.parametrize("name", TREE)
def test_each_error_is_a_name_of_the_package(name: str) -> None:
    """`asyncblend.X` is the very class."""
    assert name in asyncblend.__all__
    assert getattr(asyncblend, name) is getattr(errors, name)


@pytest.mark.parametrize("name", TREE)
def test_can_be_made_from_its_message_alone(name: str) -> None:
    """DataLoader rebuilds a worker's exception as `type(message)`; its data has defaults then."""
    error = make(name, MESSAGE)
    assert str(error) == MESSAGE
    empty = {"instance": None, "log_tail": "", "returncode": None, "index": None, "traceback": ""}
    empty |= {"path": None, "recorded": None}
    assert vars(error) == {key: empty[key] for key in DATA.get(name, {})}


@pytest.mark.parametrize("name", ["AsyncblendError", "BlenderNotFound", "InstanceError"])
def test_errors_bring_the_command_that_mends_them(name: str) -> None:
    """The command and the details are data, empty unless they are given, and survive pickling."""
    assert (make(name, MESSAGE).command, make(name, MESSAGE).details) == ("", "")
    error = make(name, MESSAGE, command="unset X", details="why")
    assert (error.command, error.details, str(error)) == ("unset X", "why", MESSAGE)
    check_same(pickle.loads(pickle.dumps(error)), error)


@pytest.mark.parametrize("name", TREE)
def test_the_message_is_all_that_is_shown(name: str) -> None:
    """`str` gives the message unchanged, also with data, and for the classes that are OSErrors too."""
    assert str(make(name, MESSAGE, **DATA.get(name, {}))) == MESSAGE


@pytest.mark.parametrize("name", DATA)
def test_data_are_attributes(name: str) -> None:
    """Each error carries its data, not only text."""
    error = make(name, MESSAGE, **DATA[name])
    assert {key: getattr(error, key) for key in DATA[name]} == DATA[name]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", TREE)
def test_survives_pickling_with_all_data(name: str, protocol: int) -> None:
    """A pickled error comes back with its type, message and data."""
    error = make(name, MESSAGE, **DATA.get(name, {}))
    check_same(pickle.loads(pickle.dumps(error, protocol)), error)


@pytest.mark.parametrize("name", TREE)
def test_survives_copying(name: str) -> None:
    """copy and deepcopy keep type, message and data."""
    error = make(name, MESSAGE, **DATA.get(name, {}))
    check_same(copy.copy(error), error)
    check_same(copy.deepcopy(error), error)


@pytest.mark.parametrize("name", TREE)
def test_notes_survive_pickling(name: str) -> None:
    """What `add_note` added travels too."""
    error = make(name, MESSAGE, **DATA.get(name, {}))
    error.add_note("while sample 3 was rendered")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while sample 3 was rendered"]


def test_a_copy_shares_no_data_dict() -> None:
    """Changing a copy's data leaves the original as it is."""
    error = errors.InstanceExited(MESSAGE, instance=1, log_tail="x", returncode=2)
    copied = copy.copy(error)
    copied.returncode = 9
    assert error.returncode == 2
