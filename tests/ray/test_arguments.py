"""What is wrong with the arguments is said at once, before anything starts; and what runs where Ray is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import asyncblend as ab

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='pip install ".[ray]"')
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def names(value: object) -> str:
    """Return what a case is called."""
    return "-".join(value) if isinstance(value, dict) else ""


@pytest.fixture
def config(tmp_path: Path) -> ab.StreamConfig:
    """A config whose script exists."""
    (tmp_path / "scene.py").touch()
    return ab.StreamConfig(script=tmp_path / "scene.py")


@needs_ray
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "a Dataset is finite: give a length"),
        ({"length": -1}, "length must be a whole number, at least 0; got -1"),
        ({"length": 8, "batch_size": 0}, "batch_size must be a whole number, at least 1; got 0"),
        ({"length": 8, "actors": 0}, "actors must be a whole number, at least 1; got 0"),
        ({"length": 8, "actors": (3, 2)}, r"actors needs least <= greatest; got \(3, 2\)"),
        ({"length": 8, "actors": (1, 2, 3)}, "a pair"),
        ({"length": 8, "instances_per_actor": 1.5}, "instances_per_actor must be"),
        ({"length": 8, "num_cpus": -1}, "num_cpus must be a number, zero or more; got -1"),
        ({"length": 8, "num_cpus": 0.00001}, "num_cpus must be zero or at least 0.0001, as Ray counts; got 1e-05"),
        ({"length": 8, "num_gpus": "all"}, "num_gpus must be a number, zero or more; got 'all'"),
        ({"length": 8, "num_gpus": 1.5}, "num_gpus must be a whole number where it is more than 1"),
        ({"length": 8, "params": iter([{}])}, "must not be an iterator, of which each actor would have a copy"),
        ({"length": 8, "params": [1]}, "params must be a mapping"),
        ({"length": 8, "files": "nowhere"}, "files must be a list of paths; got 'nowhere'"),
        ({"length": 8, "files": ["nowhere"]}, "nowhere' cannot be read.*No such file"),
    ],
    ids=names,
)
def test_a_wrong_argument_is_refused(config: ab.StreamConfig, options: dict[str, Any], words: str) -> None:
    """The message names it and its value. Ray is not even started."""
    import ray

    import asyncblend.ray

    before = ray.is_initialized()  # by another test of this process
    with pytest.raises(ab.ConfigError, match=words):
        asyncblend.ray.dataset(config, **options)
    assert ray.is_initialized() == before


@needs_ray
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus": [0]}, r"gpus=\[0\]: Ray says which GPUs an actor has; give num_gpus instead"),
        ({"scene": "nowhere.blend"}, "nowhere.blend' cannot be read"),
        ({"script_args": [["a"], ["b"]], "instances": 2}, "one sequence of strings for each of the 1 instances"),
    ],
    ids=names,
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    """What an actor cannot have is refused here."""
    import asyncblend.ray

    (tmp_path / "scene.py").touch()
    with pytest.raises(ab.ConfigError, match=words):
        asyncblend.ray.dataset(ab.StreamConfig(script=tmp_path / "scene.py", **options), length=8)
    with pytest.raises(ab.ConfigError, match=r"config must be a StreamConfig; got 'scene\.py'"):
        asyncblend.ray.dataset("scene.py", length=8)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["ray", "pyarrow"])
def test_without_ray_the_message_says_what_to_type(missing: str) -> None:
    """Nothing else of asyncblend needs it, and importing asyncblend does not load it."""
    code = (
        f"import sys; import asyncblend; assert 'ray' not in sys.modules; sys.modules[{missing!r}] = None\n"
        "try: import asyncblend.ray\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.startswith("asyncblend.ray needs Ray Data (")
    assert done.stdout.rstrip().endswith('type: pip install "asyncblend[ray]"')
