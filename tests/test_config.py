"""StreamConfig and its parts: a wrong value is refused at once, by the option's name and with the value."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import pytest

from asyncblend.config import RestartPolicy, StreamConfig, StreamOptions, Timeouts, resolve
from asyncblend.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def curriculum(index: int) -> Mapping[str, Any]:
    return {"difficulty": index // 10}


def config_of(**options: Any) -> StreamConfig:
    return StreamConfig(**{"script": "cube.py", **options})


BAD_STREAM: list[tuple[str, Any]] = [
    ("script", ""),
    ("script", None),
    ("script", 3),
    ("script", b"cube.py"),
    ("fleet", ""),
    ("fleet", 3),
    ("scene", ""),
    ("scene", 1.5),
    ("blender", ""),
    ("blender", ["blender"]),
    *((name, value) for name in ("instances", "queue_size", "prefetch") for value in (0, -1, 1.0, "2", True, None)),
    ("prefetch", 1001),
    *((name, value) for name in ("seed", "start") for value in (-1, 0.5, "0", False, None)),
    *(("length", value) for value in (-1, 10.0, "10", True)),
    *(("ordered", value) for value in (1, None, "yes")),
    *((name, value) for name in ("factory_startup", "autoexec", "show") for value in (0, None)),
    *(("on_bad_sample", value) for value in ("ignore", None, True)),
    *((name, value) for name in ("max_frames_per_instance", "max_rss") for value in (0, -1, 1.5, True, "1")),
    *(("logs", value) for value in (3, "")),
    *(("shard", value) for value in ([0, 1], (0,), (0, 1, 2), 0, (1, 1), (3, 2))),
    *(("params", value) for value in ("easy", 3, [("a", 1)])),
    *(("script_args", value) for value in ("--fast", 7, None, {"--fast"})),
    *(("restart", value) for value in (None, 3, {"max_restarts": 1}, Timeouts())),
    *(("timeouts", value) for value in (None, 30.0, RestartPolicy())),
]


def test_a_wrong_option_is_refused_by_name_and_value(case: Any) -> None:
    """The error names the option, and shows what was given."""
    for name, value in BAD_STREAM:
        with case((name, value)):
            with pytest.raises(ConfigError) as caught:
                config_of(**{name: value})
            assert name in str(caught.value)
            assert repr(value) in str(caught.value)


def test_the_wrong_half_of_a_shard_is_named(case: Any) -> None:
    """Each half of (k, n) is checked by itself."""
    shards: dict[Any, str] = {(-1, 2): "k -1", (0, 0): "n 0", (0, -3): "n -3", (0, 2.0): "n 2.0", (True, 2): "k True"}
    for shard, wrong in shards.items():
        part, value = wrong.split()
        with case(shard), pytest.raises(ConfigError, match=f"shard's {part} .*got {value}$"):
            config_of(shard=shard)


BAD_SECONDS = (-1, -0.5, math.nan, "5", None, True)
BAD_PARTS: list[tuple[type[Any], str, Any]] = [
    *((Timeouts, name, value) for name in ("start", "beat", "frame") for value in (*BAD_SECONDS, 0)),
    *((Timeouts, "stop", value) for value in BAD_SECONDS),
    *((RestartPolicy, "window", value) for value in (*BAD_SECONDS, 0.0)),
    *((RestartPolicy, name, value) for name in ("backoff", "max_backoff") for value in BAD_SECONDS),
    *((RestartPolicy, "max_restarts", value) for value in (-1, 1.0, None, True, math.inf)),
]


def test_a_wrong_field_of_a_part_is_refused_by_name_and_value(case: Any) -> None:
    """The fields of Timeouts and RestartPolicy are checked as strictly, and are named with their class."""
    for part, name, value in BAD_PARTS:
        with case((part, name, value)):
            with pytest.raises(ConfigError) as caught:
                part(**{name: value})
            assert f"{part.__name__}.{name}" in str(caught.value)
            assert repr(value) in str(caught.value)


def test_zero_and_infinity_are_seconds() -> None:
    """Timeouts may be infinite, and the stop timeout, the back-off and max_restarts may be 0."""
    assert Timeouts(start=math.inf, beat=math.inf, frame=math.inf, stop=math.inf).beat == math.inf
    assert Timeouts(stop=0).stop == 0
    policy = RestartPolicy(max_restarts=0, window=math.inf, backoff=0, max_backoff=0)
    assert (policy.max_restarts, policy.backoff) == (0, 0)


def test_edges_are_allowed() -> None:
    """The smallest values that make sense are accepted."""
    config = config_of(instances=1, queue_size=1, prefetch=1, length=0, shard=(2, 3), seed=2**70, script_args=[])
    assert (config.length, config.shard, config.seed) == (0, (2, 3), 2**70)


@pytest.mark.parametrize("cls", [StreamConfig, Timeouts, RestartPolicy])
@pytest.mark.parametrize("wrong", ["tmieouts", "zzzzzz"])
def test_unknown_option_lists_what_there_is(cls: type[Any], wrong: str) -> None:
    """An unknown option is a ConfigError that names the class, the option, and the options that there are."""
    with pytest.raises(ConfigError) as caught:
        cls(**{wrong: 1})
    message = str(caught.value)
    assert cls.__name__ in message
    assert repr(wrong) in message
    known = [field.name for field in dataclasses.fields(cls)]
    if wrong == "tmieouts" and cls is StreamConfig:
        assert "did you mean 'timeouts'?" in message
    else:
        assert all(name in message for name in known)


def test_a_misspelt_option_gets_a_suggestion() -> None:
    """The error suggests the most similar option."""
    suggestions: list[tuple[type[Any], str, str]] = [
        (StreamConfig, "queuesize", "queue_size"),
        (StreamConfig, "instance", "instances"),
        (Timeouts, "beats", "beat"),
        (RestartPolicy, "max_restart", "max_restarts"),
    ]
    for cls, wrong, right in suggestions:
        with pytest.raises(ConfigError, match=f"{wrong!r}; did you mean {right!r}"):
            cls(**{wrong: 1})


def test_missing_script_is_named() -> None:
    """The error names the only required option, whether or not others are given. A fleet that runs has a script."""
    with pytest.raises(ConfigError, match="StreamConfig needs script"):
        StreamConfig()
    with pytest.raises(ConfigError, match="StreamConfig needs script"):
        StreamConfig(instances=2)
    assert StreamConfig(fleet="cubes").script == ""


@pytest.mark.parametrize("cls", [StreamConfig, Timeouts, RestartPolicy])
def test_options_are_passed_by_name_only(cls: type[Any]) -> None:
    """A positional option is a TypeError, so that the order of the fields never matters."""
    with pytest.raises(TypeError):
        cls("cube.py")


def test_defaults_are_as_pinned() -> None:
    """The fields and their defaults are public."""
    assert {f.name: getattr(config_of(), f.name) for f in dataclasses.fields(StreamConfig)} == {
        "script": "cube.py",
        "fleet": None,
        "scene": None,
        "script_args": (),
        "instances": 4,
        "blender": None,
        "seed": 0,
        "length": None,
        "start": 0,
        "ordered": False,
        "shard": None,
        "params": None,
        "queue_size": 16,
        "prefetch": 2,
        "shared_memory": True,
        "restart": RestartPolicy(),
        "timeouts": Timeouts(start=120.0, beat=30.0, frame=300.0, stop=5.0),
        "on_bad_sample": "raise",
        "max_frames_per_instance": None,
        "max_rss": None,
        "threads": "auto",
        "show": False,
        "gpus": None,
        "cluster": None,
        "logs": None,
        "factory_startup": True,
        "autoexec": True,
    }
    assert dataclasses.astuple(Timeouts()) == (120.0, 30.0, 300.0, 5.0)


def test_the_keywords_are_the_fields() -> None:
    """A type checker sees for the streams' keywords what StreamConfig checks at run time."""
    assert get_type_hints(StreamOptions) == get_type_hints(StreamConfig)
    assert list(StreamOptions.__annotations__) == [field.name for field in dataclasses.fields(StreamConfig)]
    assert not StreamOptions.__required_keys__


@pytest.mark.parametrize("value", [config_of(), Timeouts(), RestartPolicy()])
def test_is_frozen(value: Any) -> None:
    """No field can be set or added."""
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, getattr(value, name))
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):  # with slots, Python 3.11 says TypeError
        value.surprise = 1


def test_nothing_is_looked_up() -> None:
    """A config may name paths that do not exist, because it is data and may be made on another machine."""
    config = config_of(script=Path("/nowhere/cube.py"), scene="/nowhere/a.blend", blender=Path("/nowhere/blender"))
    assert config.script == Path("/nowhere/cube.py")


@pytest.mark.parametrize("params", [None, {"light": 0.5}, curriculum])
def test_survives_pickling(params: Any) -> None:
    """A config reaches DataLoader workers whole, with params that are data or a function of a module."""
    config = config_of(
        script=Path("cube.py"),
        script_args=[["a"], ["b"]],
        instances=2,
        params=params,
        timeouts=Timeouts(beat=1),
        restart=RestartPolicy(max_restarts=0),
    )
    copied = pickle.loads(pickle.dumps(config))
    assert copied == config
    assert copied.params == params


def test_params_may_be_any_mapping() -> None:
    """`params` may be a read-only view too."""
    view = MappingProxyType({"a": 1})
    assert config_of(params=view).params is view


def test_script_args_are_strings_or_one_sequence_per_instance(case: Any) -> None:
    """Anything between the two forms is refused."""
    wrong: list[Any] = [
        *([["a"], ["b"], ["c"]], [["a"]]),  # too many, too few
        *(["a", ["b"]], [["a"], "b"], [["a"], [1]], [["a"], 7], [1, 2]),
    ]
    for args in wrong:
        with case(args), pytest.raises(ConfigError, match="script_args must"):
            config_of(script_args=args, instances=2)


def test_args_of_gives_each_instance_the_same_strings() -> None:
    """Plain arguments go to every instance, with paths as strings."""
    config = config_of(script_args=["--out", Path("a/b")], instances=2)
    assert config.args_of(0) == config.args_of(1) == ("--out", str(Path("a/b")))
    assert config_of().args_of(3) == ()


def test_args_of_gives_each_instance_its_own() -> None:
    """With one sequence per instance, each gets its own."""
    config = config_of(script_args=[["a"], (Path("b"), "c")], instances=2)
    assert (config.args_of(0), config.args_of(1)) == (("a",), ("b", "c"))


def test_resolve_without_a_config_makes_one() -> None:
    """Options without a config are the fields of a new one, and are checked as such."""
    assert resolve(None, {"script": "a.py", "instances": 2}) == config_of(script="a.py", instances=2)
    with pytest.raises(ConfigError, match="needs script"):
        resolve(None, {})
    with pytest.raises(ConfigError, match="did you mean 'instances'"):
        resolve(None, {"script": "a.py", "instance": 2})


def test_resolve_lets_options_override() -> None:
    """An option that is given by name wins, and everything else is the config's."""
    config = config_of(instances=2, seed=5, params=curriculum)
    assert resolve(config, {}) == config
    changed = resolve(config, {"seed": 6, "length": 3})
    assert changed == config_of(instances=2, seed=6, length=3, params=curriculum)
    assert config.seed == 5


def test_resolve_checks_the_result() -> None:
    """An overriding option is checked, also against the config's other fields."""
    config = config_of(script_args=[["a"], ["b"]], instances=2)
    with pytest.raises(ConfigError, match="instances"):
        resolve(config, {"instances": 3})
    with pytest.raises(ConfigError, match="no option 'colour'"):
        resolve(config, {"colour": 1})


@pytest.mark.parametrize("config", ["cube.py", {"script": "cube.py"}, Timeouts()])
def test_resolve_takes_no_other_config(config: Any) -> None:
    """Another object as the config is shown in the error, which says that options are passed by name."""
    with pytest.raises(ConfigError, match="config must be a StreamConfig") as caught:
        resolve(config, {})
    assert repr(config) in str(caught.value)


@pytest.mark.parametrize("name", ["part.glb", "a b/Mug.STL"])
def test_a_model_is_no_script(name: str) -> None:
    """The error says which script renders models, and how to give it one."""
    with pytest.raises(ConfigError, match=r"is a model, not a script: give script='model\.py'") as caught:
        config_of(script=name)
    assert f"model.py -- {name}" in str(caught.value)


def test_wrong_hardware(case: Any) -> None:
    """A wrong number of threads, list of GPUs or flag is refused, and the error says what would be right."""
    wrong: list[tuple[str, Any, str]] = [
        ("threads", 0, "threads must be a whole number, at least 1; got 0"),
        ("threads", "all", "threads must be a whole number, \"auto\" or None; got 'all'"),
        ("threads", True, "threads must be a whole number, at least 1; got True"),
        ("gpus", [], r"gpus must be a sequence of devices, such as \[0, 1\]; got \[\]"),
        *(("gpus", value, "gpus must be a sequence") for value in ("0", 0, [0.5])),
        ("shared_memory", 1, "shared_memory must be a bool; got 1"),
    ]
    for name, value, message in wrong:
        with case((name, value)), pytest.raises(ConfigError, match=message):
            config_of(**{name: value})


def test_numbers_that_are_no_python_numbers_or_far_too_long(case: Any) -> None:
    """numpy's numbers look like Python's own, so the error has their type. One of thousands of digits is not written out."""
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: config_of(length=np.int64(5)), r"at least 0; got .*5.*, a numpy.int64$"),
        (lambda: config_of(queue_size=np.float32(3)), r"queue_size .* got .*3\.0.*, a numpy.float32$"),
        (lambda: config_of(seed=10**5000), "seed .* of at most 1023 bits; got a whole number of 16610 bits"),
        (lambda: config_of(instances=-(10**5000)), "instances .* at least 1; got a whole number of 16610 bits"),
        (lambda: Timeouts(frame=10**5000), "frame must be positive seconds; got a whole number of 16610 bits"),
        (lambda: Timeouts(frame=2**1024 - 1), "frame must be positive seconds; got a whole number of 1024 bits"),
    ]
    for number, (make, message) in enumerate(wrong):
        with case(number), pytest.raises(ConfigError, match=message):
            make()


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instance gets its share, at least one core; a number is kept, and None leaves the threads to the scene."""
    monkeypatch.setattr("asyncblend.config.cores", lambda: 8)
    each = [StreamConfig(script="x.py", instances=n).threads_each() for n in (1, 2, 3, 8, 20)]
    assert each == [8, 4, 2, 1, 1]
    assert StreamConfig(script="x.py", instances=4, threads=5).threads_each() == 5
    assert StreamConfig(script="x.py", threads=None).threads_each() is None


def test_gpus_are_given_out_in_turn() -> None:
    """An instance's number chooses its GPU."""
    config = StreamConfig(script="x.py", instances=5, gpus=[1, "GPU-3a"])
    assert [config.gpu_of(i) for i in range(5)] == ["1", "GPU-3a", "1", "GPU-3a", "1"]
    assert StreamConfig(script="x.py").gpu_of(3) is None
