"""The rows of a dataset, on a cluster of two nodes: their values and types, where they come from, and where they go."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import asyncblend as ab
from asyncblend.testing import fake_blender

from .conftest import Cluster, until

ray = pytest.importorskip("ray", reason='pip install ".[ray]"')
pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

LABELLED = """
def sample(task):
    n = int(task.rng.integers(0, 4))
    return {
        "image": task.rng.integers(0, 256, (24, 32, 3), np.uint8),
        "mask": task.rng.random((24, 32)) < 0.5,
        "bbox": task.rng.random((n, 4), np.float32),
        "class_id": np.arange(n, dtype=np.uint16),
        "camera": {"matrix": task.rng.random((4, 4)), "lens": 35.5, "name": "Camera", "offset": (1, 2)},
        "objects": [{"name": f"Cube.{i}", "corners": task.rng.random((i + 1, 2))} for i in range(n)],
        "names": ["Cube"] * n,
        "distance": task.rng.random() if n else None,
        "level": np.float32(task.params.get("level", 0.25)),
        "visible": n > 2,
    }
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that renders nothing, a node of one CPU, and one with GPUs that are there for Ray alone."""
    made = Cluster({"num_cpus": 1}, {"num_cpus": 1, "num_gpus": 2})
    yield made
    made.end()


@pytest.fixture
def configured(tmp_path: Path, write_script: Callable[..., Path]) -> Callable[..., ab.StreamConfig]:
    """Make a config of a script that runs in a fake Blender."""

    def make(body: str = LABELLED, **options: Any) -> ab.StreamConfig:
        return ab.StreamConfig(script=write_script(body), blender=fake_blender(tmp_path / "fake"), **options)

    return make


def plain(value: Any) -> Any:
    """Return a value as Arrow gives it back: tuples are lists there."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def assert_equal(found: Any, wanted: Any) -> None:
    """Compare nested values, and the dtypes and shapes of arrays."""
    if isinstance(wanted, np.ndarray):
        np.testing.assert_array_equal(found, wanted, strict=True)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_equal(found[name], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    else:
        assert found == wanted


def streamed(config: ab.StreamConfig, **options: Any) -> list[dict[str, Any]]:
    """Return what the rows must be, from one fleet on this machine, in order of index."""
    with ab.BlenderStream(config, ordered=True, **options).sync() as frames:
        return [
            plain({"index": frame.index, **frame, **({"params": frame.params} if frame.params else {})})
            for frame in frames
        ]


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in order of index."""
    return sorted(rows, key=lambda row: int(row["index"]))


def test_rows_are_the_frames_of_a_stream(cluster: Cluster, configured: Callable[..., Any], tmp_path: Path) -> None:
    """Each value comes back with its dtype and shape: from memory, from Parquet, from WebDataset and as tensors."""
    import asyncblend.ray

    config = configured(length=70, start=5, seed=7, params=lambda index: {"level": index / 8, "tint": np.arange(3)})
    wanted = streamed(config)
    rows = asyncblend.ray.dataset(config, batch_size=16, actors=2).materialize()
    assert_equal(in_order(rows.take_all()), wanted)
    assert not any("object" in str(type_) for type_ in rows.schema().types)

    rows.write_parquet(str(tmp_path / "parquet"))
    assert_equal(in_order(ray.data.read_parquet(str(tmp_path / "parquet")).take_all()), wanted)

    rows.write_webdataset(str(tmp_path / "shards"), encoder=asyncblend.ray.encode)
    assert {path.suffix for path in (tmp_path / "shards").iterdir()} == {".tar"}
    files = ray.data.read_webdataset(str(tmp_path / "shards"), decoder=None)
    read = files.map_batches(asyncblend.ray.decode, batch_format="pyarrow")
    assert_equal(in_order(read.take_all()), wanted)

    images: dict[int, torch.Tensor] = {}
    for batch in rows.select_columns(["index", "image", "level"]).iter_torch_batches(batch_size=16):
        assert batch["image"].dtype == torch.uint8
        images.update(zip(batch["index"].tolist(), batch["image"], strict=True))
    for row in wanted:
        np.testing.assert_array_equal(images[row["index"]], row["image"])


@pytest.mark.exhaustive
def test_params_are_rows_of_another_dataset(cluster: Cluster, configured: Callable[..., Any]) -> None:
    """Without a column of indices, rows are numbered in their own order, whatever order their tasks end in."""
    import asyncblend.ray

    def hurried(row: dict[str, Any]) -> dict[str, Any]:
        threading.Event().wait(0.2 if row["item"] == 0 else 0)
        return {"level": row["item"] / 2, "tint": [row["item"]]}

    config = configured(start=3)
    table = ray.data.from_items(list(range(20)), override_num_blocks=10).map(hurried)
    rows = in_order(asyncblend.ray.dataset(config, params=table, batch_size=4, actors=2).take_all())
    wanted = streamed(config, length=20, params=lambda index: {"level": (index - 3) / 2, "tint": [index - 3]})
    assert_equal(rows, wanted)
    assert not table.context.execution_options.preserve_order


@pytest.mark.exhaustive
def test_params_may_be_no_rows_at_all(cluster: Cluster, configured: Callable[..., Any]) -> None:
    """Then there are no samples, whether or not there is a column of indices."""
    import asyncblend.ray

    rows = ray.data.from_items([{"index": 1, "level": 0.5}])
    for table in (ray.data.from_items([]), rows.limit(0)):
        assert asyncblend.ray.dataset(configured(), params=table, actors=1).take_all() == []


@pytest.mark.exhaustive
def test_an_index_may_come_with_several_params(cluster: Cluster, configured: Callable[..., Any]) -> None:
    """A column of indices says which samples they are; each of its rows is rendered with its own params."""
    import asyncblend.ray

    config = configured()
    table = ray.data.from_items([{"index": 4 + i // 2, "level": i / 2} for i in range(12)])
    rows = asyncblend.ray.dataset(config, params=table, length=10, batch_size=8, actors=1).take_all()
    assert [(row["index"], row["params"]["level"]) for row in rows] == [(4 + i // 2, i / 2) for i in range(10)]
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])


TRAVELLED = """
import os, pathlib, sys
import beside
from package.inner import deep

folder = pathlib.Path(__file__).parent

def sample(task):
    return {
        "file": __file__,
        "beside": beside.VALUE,
        "deep": deep.VALUE,
        "texture": (folder / "textures" / "wood.txt").read_text(),
        "args": sys.argv[1:],
        "given": pathlib.Path(sys.argv[2]).read_text(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "mode": next(p for p in folder.parents if p.name.startswith("asyncblend-")).stat().st_mode & 0o777,
    }
"""


def test_the_script_and_its_files_travel(cluster: Cluster, configured: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing of them is left when the rows are rendered, on a GPU that Ray assigns."""
    import asyncblend.ray

    for name, text in {
        "beside.py": "from other import VALUE",
        "other.py": "VALUE = 'beside'",
        "unused.py": "raise RuntimeError",
        "package/inner/deep.py": "from . import deeper\nVALUE = deeper.VALUE",
        "package/inner/deeper.py": "VALUE = 'deep'",
        "textures/wood.txt": "wood",
        "given.txt": "given",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    config = configured(TRAVELLED, script_args=("--given", tmp_path / "given.txt", "7"))
    rows = asyncblend.ray.dataset(
        config, length=3, actors=1, num_gpus=1, num_cpus=0.5, files=[tmp_path / "textures", tmp_path / "given.txt"]
    )
    for path in (config.script, *(tmp_path / name for name in ("beside.py", "other.py", "given.txt"))):
        Path(path).unlink()
    for row in rows.take_all():
        assert (row["beside"], row["deep"], row["texture"], row["given"]) == ("beside", "deep", "wood", "given")
        assert row["args"][::2] == ["--given", "7"]
        assert row["gpus"] in ("0", "1")
        assert Path(row["file"]).is_relative_to(cluster.folder)
        assert row["mode"] == 0o700


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("def sample(task): raise ValueError('no light')", ab.SampleError, "no light"),
        pytest.param("raise ValueError('no scene')", ab.InstanceExited, "no scene", marks=pytest.mark.exhaustive),
        pytest.param(
            "def sample(task): return {'x': task.index or 'none'}", ab.SampleError, "'x'", marks=pytest.mark.exhaustive
        ),
    ],
    ids=["sample", "start", "rows"],
)
def test_errors_are_asyncblends_own(
    cluster: Cluster, configured: Callable[..., Any], body: str, error: type[Exception], words: str
) -> None:
    """What goes wrong on a node is raised to who iterates, as it would be by a stream, with Blender's own words."""
    import asyncblend.ray

    with pytest.raises(error, match=words):
        asyncblend.ray.dataset(configured(body), length=8, batch_size=4, actors=1).take_all()
    gc.collect()  # Ray keeps the actors of an execution that failed as long as its exception is in memory


@pytest.mark.exhaustive
def test_what_knows_the_version_is_lost(cluster: Cluster, configured: Callable[..., Any]) -> None:
    """The nodes that come then are not let in: they could agree on another version than the rows before."""
    import asyncblend.ray

    rows = asyncblend.ray.dataset(configured(), length=4, batch_size=4, actors=1)
    assert len(rows.take_all()) == 4
    for process in cluster.processes("BlenderVersions"):
        process.kill()
    until(lambda: not cluster.processes("BlenderVersions"))
    with pytest.raises(ab.ConfigError, match=r"cannot be known any more which one the others have.*begin again"):
        rows.take_all()
    gc.collect()


@pytest.mark.exhaustive
def test_bad_samples_are_left_out(cluster: Cluster, configured: Callable[..., Any]) -> None:
    """Where they are skipped, other rows come, also from a batch that has no row at all. An episode is one row."""
    import asyncblend.ray

    episode = "def sample(task):\n    for step in range(task.index - 3): yield {'x': np.full(2, 1 // (task.index > 4))}"
    config = configured(episode, on_bad_sample="skip")
    rows = asyncblend.ray.dataset(config, length=8, batch_size=4, actors=1).take_all()
    assert [(row["index"], row["x"].shape) for row in rows] == [(5, (2, 2)), (6, (3, 2)), (7, (4, 2))]


@pytest.mark.exhaustive
def test_two_ranks_train_on_as_many_rows(cluster: Cluster, configured: Callable[..., Any], tmp_path: Path) -> None:
    """`streaming_split` feeds two ranks of torch.distributed equally, and no row comes to both."""
    import asyncblend.ray

    def rank(number: int, rows: Any, meet: str) -> list[int]:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=number, world_size=2)
        seen = torch.zeros(100, dtype=torch.int64)
        for batch in rows.iter_torch_batches(batch_size=8):
            counts = torch.bincount(batch["index"], minlength=100)
            dist.all_reduce(counts)  # hangs if the other rank has no batch left
            seen += counts
        dist.destroy_process_group()
        return seen.tolist()

    config = configured("def sample(task): return {'image': task.rng.integers(0, 9, (4, 4))}", length=96)
    ranks = asyncblend.ray.dataset(config, batch_size=8, actors=2).streaming_split(2, equal=True)
    remote = ray.remote(num_cpus=0)(rank)
    found = ray.get([remote.remote(i, rows, tmp_path / "meet") for i, rows in enumerate(ranks)], timeout=200)
    assert found == [[1] * 96 + [0] * 4] * 2


@pytest.mark.exhaustive
def test_a_cluster_that_is_too_small_is_waited_for(
    cluster: Cluster, configured: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It says what is wanted and what there is, and goes on when a node has come."""
    import asyncblend.ray

    config, found = configured(length=4), []
    with caplog.at_level(logging.WARNING, "asyncblend"):
        made = threading.Thread(
            target=lambda: found.append(asyncblend.ray.dataset(config, actors=1, num_cpus=2, num_gpus=1))
        )
        made.start()
        while not caplog.messages:
            assert made.is_alive()
            made.join(0.05)
        node = cluster.add(num_cpus=2, num_gpus=1)
        made.join(100)
    assert "1 x (2 CPU, 1 GPU) is wanted" in caplog.text
    assert "(1 CPU, 0 GPU)" in caplog.text
    assert "(1 CPU, 2 GPU)" in caplog.text
    assert len(found[0].take_all()) == 4
    cluster.remove(node)
