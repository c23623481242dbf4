"""The exception tree: its shape is public, and DataLoader workers pickle its errors."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import asyncblend
from asyncblend import errors

TREE: dict[str, tuple[type[BaseException], ...]] = {
    "AsyncblendError": (Exception,),
    "ConfigError": (errors.AsyncblendError, ValueError),
    "BlenderNotFound": (errors.AsyncblendError, FileNotFoundError),
    "InstanceError": (errors.AsyncblendError,),
    "InstanceExited": (errors.InstanceError,),
    "WindowClosed": (errors.InstanceExited,),
    "StartTimeout": (errors.InstanceError, TimeoutError),
    "FrameTimeout": (errors.InstanceError, TimeoutError),
    "CrashLoop": (errors.InstanceError,),
    "SampleError": (errors.AsyncblendError,),
    "EpisodeOver": (errors.AsyncblendError,),
    "EpisodeLost": (errors.AsyncblendError,),
    "FleetLost": (errors.AsyncblendError,),
    "ProtocolError": (errors.AsyncblendError,),
    "ForkedProcessError": (errors.AsyncblendError,),
    "RecordingError": (errors.AsyncblendError,),
    "StreamClosed": (errors.AsyncblendError,),
}

INSTANCE = {"instance": 3, "log_tail": "Fra:1 Mem:8M\nError: out of memory"}
DATA: dict[str, dict[str, Any]] = {
    "InstanceError": INSTANCE,
    "InstanceExited": {**INSTANCE, "returncode": -11},
    "WindowClosed": {**INSTANCE, "returncode": 0},
    "StartTimeout": INSTANCE,
    "FrameTimeout": INSTANCE,
    "CrashLoop": INSTANCE,
    "SampleError": {"index": 17, "traceback": "Traceback (most recent call last):\n..."},
    "EpisodeLost": {"step": 12},
    "FleetLost": {"fleet": "cubes"},
    "RecordingError": {"path": "cubes/shard-000003.tar", "offset": 1024, "recorded": 300},
}
DEFAULTS = {
    "instance": None,
    "log_tail": "",
    "returncode": None,
    "index": None,
    "step": None,
    "fleet": "",
    "traceback": "",
    "path": None,
    "offset": None,
    "recorded": None,
}
MESSAGE = "it went wrong:\n  line two, grüß 'quoted' %s {}"


def make(name: str, **data: Any) -> errors.AsyncblendError:
    """Return a new error of this class with the message and these data."""
    error = getattr(errors, name)(MESSAGE, **data)
    assert isinstance(error, errors.AsyncblendError)
    return error


def each_with_data() -> list[errors.AsyncblendError]:
    """Return one error of each class, with all the data that it can carry."""
    return [make(name, **DATA.get(name, {})) for name in TREE]


def check_same(copied: BaseException, error: BaseException) -> None:
    """Fail unless the copy has the type, the message and the data of the error."""
    assert copied is not error
    assert type(copied) is type(error)
    assert str(copied) == str(error), type(error)
    assert copied.args == error.args, type(error)
    assert vars(copied) == vars(error), type(error)


def test_the_tree_is_complete() -> None:
    """Every exception of the module is in the tree and is public, and each class has exactly the tree's bases."""
    classes = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, BaseException)}
    assert {name: cls.__bases__ for name, cls in classes.items()} == TREE


def test_each_error_is_a_name_of_the_package() -> None:
    """`asyncblend.X` is the class itself."""
    for name in TREE:
        assert name in asyncblend.__all__
        assert getattr(asyncblend, name) is getattr(errors, name)


def test_can_be_made_from_its_message_alone() -> None:
    """An error made from a message has default data: DataLoader rebuilds a worker's exception as `type(message)`."""
    for name in TREE:
        error = make(name)
        assert str(error) == MESSAGE, name
        assert vars(error) == {key: DEFAULTS[key] for key in DATA.get(name, {})}, name


def test_the_message_is_all_that_is_shown() -> None:
    """`str` gives the message unchanged, also with data, and also for the classes that are OSErrors."""
    for error in each_with_data():
        assert str(error) == MESSAGE, type(error)


def test_data_are_attributes() -> None:
    """Each error carries its data, not only text."""
    for name, data in DATA.items():
        error = make(name, **data)
        assert {key: getattr(error, key) for key in data} == data, name


def test_some_errors_bring_the_command_that_mends_them() -> None:
    """The command and the details are empty unless they are given, are not in the message, and survive pickling."""
    for name in ("AsyncblendError", "BlenderNotFound", "InstanceError"):
        assert (make(name).command, make(name).details) == ("", "")
        error = make(name, command="unset X", details="why")
        assert (error.command, error.details, str(error)) == ("unset X", "why", MESSAGE)
        check_same(pickle.loads(pickle.dumps(error)), error)


def test_pickling_keeps_type_message_data_and_notes() -> None:
    """A pickled error comes back whole with every pickle protocol, and so do the notes that `add_note` added."""
    for error in each_with_data():
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            check_same(pickle.loads(pickle.dumps(error, protocol)), error)
        error.add_note("while sample 3 was rendered")
        assert pickle.loads(pickle.dumps(error)).__notes__ == ["while sample 3 was rendered"], type(error)


def test_copying_keeps_type_message_and_data() -> None:
    """`copy` and `deepcopy` give an equal error."""
    for error in each_with_data():
        check_same(copy.copy(error), error)
        check_same(copy.deepcopy(error), error)


def test_a_copy_shares_no_data_with_the_original() -> None:
    """Changing a copy's data leaves the original as it is."""
    error = errors.InstanceExited(MESSAGE, instance=1, log_tail="x", returncode=2)
    copied = copy.copy(error)
    copied.returncode = 9
    assert error.returncode == 2
