"""Recordings in an object store: a real server of S3 on this machine, which fsspec asks as it would ask Amazon's."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import asyncblend as ab
from asyncblend.errors import RecordingError
from asyncblend.recording import Recording

from .conftest import values_of

Uploaded = Callable[[Path], str]

server = pytest.importorskip("moto.server", reason='pip install ".[dev]"')
boto3 = pytest.importorskip("boto3", reason='pip install ".[dev]"')
pytest.importorskip("s3fs", reason='pip install ".[cloud]"')


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The address of a server."""
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def uploaded(store: str, monkeypatch: pytest.MonkeyPatch) -> Uploaded:
    """Upload a folder, and return its URL there."""
    for name, value in {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")

    def upload(folder: Path) -> str:
        client.create_bucket(Bucket="data")
        for found in client.list_objects_v2(Bucket="data").get("Contents", []):
            client.delete_object(Bucket="data", Key=found["Key"])
        for path in folder.iterdir():
            client.upload_file(str(path), "data", f"runs/cubes/{path.name}")
        return "s3://data/runs/cubes"

    return upload


def test_the_samples_are_those_of_the_folder(written: Callable[..., Path], uploaded: Uploaded) -> None:
    """All of them, their bytes, and what made them; a pickled recording reads too, and a slash at the end is nothing."""
    folder = written(range(3, 30))
    local, remote = Recording(folder), Recording(uploaded(folder) + "/")
    assert remote.about == local.about
    assert remote.checksum == local.checksum
    assert str(remote.folder) == "s3://data/runs/cubes"
    for one, other in zip(pickle.loads(pickle.dumps(remote)), local, strict=True):
        assert (one.index, one.files) == (other.index, other.files)
    assert ab.recording.is_recording("s3://data/runs/cubes")
    assert [sample["name"] for sample in ab.recording.read("s3://data/runs/cubes")][:2] == ["sample 3", "sample 4"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_dataset_reads_it(written: Callable[..., Path], uploaded: Uploaded, workers: int) -> None:
    """Here and in the processes of a DataLoader, which are forks of one that has read it; shuffled, in the same order."""
    folder = written(range(30))
    remote = ab.RecordedDataset(uploaded(folder), shuffle=True, seed=4)
    assert next(iter(remote))["image"].shape == (6, 8, 3)
    loaders = [DataLoader(one, batch_size=None, num_workers=workers) for one in (remote, ab.RecordedDataset(folder, shuffle=True, seed=4))]  # fmt: skip
    found, wanted = (list(loader) for loader in loaders)
    assert [item["index"] for item in found] == [item["index"] for item in wanted]
    for item in found:
        assert (item["image"].numpy() == values_of(item["index"])["image"]).all()


def test_a_table_may_be_missing(written: Callable[..., Path], uploaded: Uploaded) -> None:
    """The tar has all that it says."""
    folder = written(range(10))
    (folder / "shard-000001.json").unlink()
    assert [sample.index for sample in Recording(uploaded(folder))] == list(range(10))


def test_what_was_uploaded_since_is_seen(written: Callable[..., Path], uploaded: Uploaded) -> None:
    """Nothing that fsspec remembers of the folder hides it from a new recording."""
    assert len(Recording(uploaded(written(range(4))))) == 4
    assert len(Recording(uploaded(written(range(12))))) == 12


def test_damage_is_found(written: Callable[..., Path], uploaded: Uploaded) -> None:
    """A changed byte is a RecordingError that names the shard's URL and the place; so is a tar that is cut off."""
    folder = written(range(8))
    tar = folder / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"PNG") + 60] ^= 1
    tar.write_bytes(data)
    with pytest.raises(RecordingError, match=r"s3://data/runs/cubes/shard-000001\.tar is damaged: sample 4") as caught:
        list(Recording(uploaded(folder)))
    assert caught.value.path == "s3://data/runs/cubes/shard-000001.tar"
    tar.write_bytes(data[:-2000])
    with pytest.raises(RecordingError, match=r"s3://data/runs/cubes/shard-000001\.tar is cut off"):
        Recording(uploaded(folder))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_tar_that_ends_early_is_told_as_in_a_folder(
    written: Callable[..., Path], uploaded: Uploaded, table: bool
) -> None:
    """With the place, wherever it ends, though a store refuses to read beyond the end: since it was opened, or before."""
    folder = written(range(8))
    tar = folder / "shard-000001.tar"
    whole = tar.read_bytes()
    starts = [int(span[1]) for span in json.loads(tar.with_suffix(".json").read_bytes())["samples"]]
    if not table:
        tar.with_suffix(".json").unlink()
    for size in (0, starts[0], starts[1], starts[1] + 512, starts[1] + 700, starts[2]):
        tar.write_bytes(whole)
        local, remote = Recording(folder), Recording(uploaded(folder))
        tar.write_bytes(whole[:size])
        told = []
        for one in (local, remote):
            uploaded(folder)
            with pytest.raises(RecordingError, match="damaged") as caught:
                list(one if table else Recording(str(one.folder)))
            told.append((str(caught.value).replace(str(one.folder), ""), caught.value.offset))
        assert told[0] == told[1]


def test_what_cannot_be_read_is_said(
    written: Callable[..., Path], uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time a RecordingError with the URL, whatever fsspec or the store's own package raises."""
    url = uploaded(written(range(4)))
    recording = Recording(url)
    for wrong, words in {
        "s3://data/nowhere": "cannot read the folder s3://data/nowhere",
        "s3://no-bucket/cubes": "cannot read the folder s3://no-bucket/cubes: .*bucket",
        "nothing://data/cubes": "nothing://data/cubes cannot be read: Protocol not known: nothing",
    }.items():
        with pytest.raises(RecordingError, match=words):
            ab.RecordedDataset(wrong)
    boto3.client("s3").delete_object(Bucket="data", Key="runs/cubes/shard-000000.tar")
    with pytest.raises(RecordingError, match=r"cannot read s3://data/runs/cubes/shard-000000\.tar: "):
        recording[0]
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(RecordingError, match=r'without fsspec.*pip install "asyncblend\[cloud\]"'):
        Recording(url)


def test_a_url_of_a_file_is_a_path(written: Callable[..., Path]) -> None:
    """It is read as the folder that it names."""
    folder = written(range(3))
    assert Recording(f"file://{folder}").indices.tolist() == [0, 1, 2]
    named = folder.rename(folder.with_name("a b#c%20ü"))
    assert Recording(named.as_uri()).indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("url", ["s3://data/cubes", "s3:/data/cubes", "gs://x"])
def test_nothing_is_written_to_a_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a folder of that name; the second is what a Path makes of the first."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ab.ConfigError, match=f"written into a folder, not to '{url}'; copy it there when it is whole"):
        ab.BlenderStream(script="scene.py").record(url, length=3)
    assert not list(tmp_path.iterdir())
