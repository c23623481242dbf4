"""`record`: a recording that is rendered all over a cluster. Each shard of it is one piece of work.

The program that calls `record` has the folder: it locks it, finds out which samples are missing, and gives each shard
its number and its indices. An actor renders them in order and writes the tar file, which no other actor writes; the
program then writes its table. So a shard is the same whoever made it, and a lost actor's shard is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.extensions import ArrowPythonObjectArray
from ray.exceptions import RayError

from ..checks import check_whole
from ..config import PathLike, StreamConfig
from ..errors import AsyncblendError, ConfigError, RecordingError
from ..recording.about import about, versions
from ..recording.codec import Images, encode_sample
from ..recording.places import folder_of
from ..recording.shards import Shard, Span, find_shard, shards_in, tar_of
from ..recording.writer import ShardSize, Writer, write_shard
from ..stream.frame import Frame
from ..stream.indices import own_indices
from ..warm.connection import connect
from .actors import Actors
from .generating import blocks_of
from .nodes import BlenderVersions, Tally, room, start_here, wait_for_nodes
from .renderer import Job, Renderer
from .shipping import Shipment

_EVERY = 1.0  # seconds between two reports
_PATIENCE = 10.0  # seconds for an answer


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a recording is, over the whole cluster."""

    total: int
    """Samples of the stream."""
    before: int
    """Samples that were in the folder at the beginning."""
    recorded: int
    """Samples in the folder now."""
    rendered: int = 0
    """Samples that are rendered, but whose shards are not whole yet."""
    skipped: int = 0
    """Samples that were left out, because they were bad."""
    written: int = 0
    """Bytes."""
    nodes: int = 0
    """Nodes that have rendered so far."""


def record(
    config: StreamConfig,
    folder: PathLike,
    *,
    length: int | None = None,
    shard_size: int = 100,
    image_format: str = "png",
    quality: int | None = None,
    actors: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    files: Iterable[PathLike] = (),
    address: str | None = None,
    quiet: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Record a stream with all nodes of a cluster, and return when the recording is whole:

        asyncblend.ray.record(ab.StreamConfig(script="scene.py"), "/shared/cubes", length=1_000_000)

    The recording is that of `BlenderStream.record` with one instance, byte for byte, however many nodes make it, if these
    have the same packages and no sample is skipped; it is continued in the same way, here or there, when it was
    interrupted. Whole shards are never made again.

    Args:
        config: What to record. Here `instances` and `ordered` have no meaning.
        folder: A folder that this machine and all nodes see under the same path, such as of a shared file system.
        length, image_format, quality: As `BlenderStream.record` has them.
        shard_size: The samples in a shard. A lost actor's shard is rendered again.
        actors: The number of actors, each with one Blender; or the least and the greatest. None: as many as there are
            nodes for, also those that come later.
        num_cpus, num_gpus: Ray's CPUs and GPUs of each Blender.
        files: What else the script reads, as `dataset` has it.
        address, quiet: As `connect` has them. It connects when all arguments and the folder are checked.
        progress: Called with how far the recording is, about once a second from another thread, and when nodes render
            no more, also after an error.

    Raises:
        ConfigError: An argument is wrong, there is no cluster, or the folder has a recording of another stream, or of
            another version of Blender than a node has.
        RecordingError: The folder cannot be written, a node does not see it, another recording into it is going on, or
            a shard in it is damaged.
        AsyncblendError: As iterating over the stream raises. All whole shards stay.
    """
    if not isinstance(config, StreamConfig):
        raise ConfigError(f"config must be a StreamConfig; got {config!r}")
    workers = Actors.checked((1, 1) if actors is None else actors, 1, num_cpus, num_gpus)
    if actors is None and not any(workers.each.values()):
        raise ConfigError("num_cpus=0 without num_gpus lets a node have any number of actors; give actors")
    if length is not None:
        check_whole("length", length, 0)
        if config.length is not None and length > config.length:
            raise ConfigError(f"length={length} is more than the stream has, which is {config.length}")
    elif config.length is None:
        raise ConfigError("an endless stream is recorded up to a length: record(config, folder, length=1000)")
    if not isinstance(shard_size, int):
        raise ConfigError(
            f"on a cluster, shard_size must be a number of samples, so that it is known which samples each shard has "
            f"before they are rendered; got {shard_size!r}"
        )
    size, images = ShardSize(shard_size), Images(image_format, quality)
    own = workers.config(dataclasses.replace(config, length=config.length if length is None else length))
    indices, place = own_indices(own), Path(os.path.abspath(folder_of(folder)))
    made_of, shipment = about(own, images), Shipment.packed(own, files)
    writer = Writer(place, made_of, size)
    writer.open()
    gathering = _Gathering(writer, place, len(indices), progress)
    try:
        missing = [index for index in indices if index not in writer.indices]
        if missing:
            connect(address, quiet=quiet)
            wait_for_nodes(workers.least, workers.each)
            work = _work(missing, shard_size, place)
            if actors is None:
                least = min(len(work), max(1, int(room(workers.each))))
                workers = dataclasses.replace(workers, least=least, most=len(work))
            tally = start_here(Tally, restarts=True)
            blenders = start_here(BlenderVersions, writer.blender, f"the recording in {place}")
            rows = workers.map(
                ray.data.from_blocks(blocks_of(work, 1)),
                ShardRenderer,
                *(Job(shipment, blenders), place, made_of, images, tally),
                batch_size=1,
                samples=shard_size,
                prefetch=own.prefetch,
                sparing=True,
            )
            gathering.gather(rows, set(work["number"].to_pylist()), tally)
        return gathering.progress()
    finally:
        try:
            writer.sweep()
        finally:
            writer.close()


def _work(missing: Sequence[int], shard_size: int, folder: Path) -> pa.Table:
    """Return which shards are to be made: the missing samples in their order, under the numbers that are free.

    Where whole shards are missing between others, as after an interruption, they are the same shards again.
    """
    taken = set(shards_in(folder))
    free = (number for number in itertools.count() if number not in taken)
    shards = [missing[start : start + shard_size] for start in range(0, len(missing), shard_size)]
    return pa.table({"number": list(itertools.islice(free, len(shards))), "indices": shards})


class _Gathering:
    """What the program does meanwhile: it takes in the shards that became whole, and reports."""

    def __init__(self, writer: Writer, folder: Path, total: int, report: Callable[[Progress], None] | None) -> None:
        self._writer, self._folder, self._total, self._report = writer, folder, total, report
        self._before = len(writer.indices)
        self._unfinished: set[int] = set()
        self._skipped = 0
        self._rendered: Mapping[int, int] = {}
        self._nodes: set[str] = set()

    def progress(self) -> Progress:
        """Return how far it is."""
        rendered = sum(samples for number, samples in self._rendered.items() if number in self._unfinished)
        whole = (self._writer.recorded, rendered, self._skipped, self._writer.written, len(self._nodes))
        return Progress(self._total, self._before, *whole)

    def gather(self, rows: ray.data.Dataset, numbers: set[int], tally: ray.actor.ActorHandle) -> None:
        """Have the shards of these numbers made, and take them in."""
        self._unfinished = numbers
        rows.context.enable_progress_bars = False
        with self._reporting(tally):
            try:
                # Without prefetching, which would hold back what came last.
                for batch in rows.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                    for row in batch.to_pylist():
                        if row["error"] is not None:
                            raise row["error"]
                        self._take_in(row)
            finally:
                self._take_in_others()

    def _take_in(self, row: Mapping[str, Any]) -> None:
        self._nodes.add(row["node"])
        self._skipped += row["skipped"]
        if row["shard"]:
            path = tar_of(self._folder, row["number"])
            if not path.exists():
                raise RecordingError(
                    f"node {row['node']} has written {path}, which this machine does not see; take a folder that all "
                    f"nodes see under the same path, such as one of a shared file system",
                    path=str(self._folder),
                )
            size, made_of, spans = json.loads(row["shard"])
            self._writer.include(Shard(path, size, made_of, [Span(*span) for span in spans]))
        self._unfinished.discard(row["number"])

    def _take_in_others(self) -> None:
        """Take in the shards that have become whole, and were not told of before an error or Ctrl-C."""
        with contextlib.suppress(RecordingError):  # one error is enough; the next recording finds them
            for number in self._unfinished.intersection(shards_in(self._folder)):
                self._unfinished.discard(number)
                self._writer.include(find_shard(self._folder, number))

    @contextlib.contextmanager
    def _reporting(self, tally: ray.actor.ActorHandle) -> Iterator[None]:
        ended, tell = threading.Event(), self._report or (lambda progress: None)

        def report() -> None:
            while not ended.wait(_EVERY):
                with contextlib.suppress(RayError):  # it is lost or slow, and what it says is for the progress only
                    rendered, nodes = ray.get(tally.counts.remote(), timeout=_PATIENCE)
                    self._rendered = {**self._rendered, **rendered}
                    self._nodes |= nodes
                tell(self.progress())

        thread = threading.Thread(target=report, name="asyncblend progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            tell(self.progress())


class ShardRenderer(Renderer):
    """Renders one shard at each call, and writes it into a folder that all nodes see."""

    def __init__(
        self, job: Job, folder: Path, made_of: Mapping[str, Any], images: Images, tally: ray.actor.ActorHandle
    ) -> None:
        super().__init__(job)
        self._folder, self._made_of, self._images, self._tally = folder, made_of, images, tally
        self._node = ray.get_runtime_context().get_node_id()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield one row, which says what was written: nothing, if all samples were bad and skipped."""
        number, indices = batch["number"][0].as_py(), batch["indices"][0].as_py()
        error: AsyncblendError | None = None
        row = {"number": number, "node": self._node, "skipped": 0, "shard": ""}
        try:
            if (shard := self._written(number, indices)) is not None:
                row["shard"] = json.dumps([shard.size, shard.about, shard.spans])
            row["skipped"] = len(indices) - (0 if shard is None else len(shard.spans))
        except AsyncblendError as caught:
            error = caught  # which Ray would bury in one of its own
        yield pa.Table.from_pylist([row]).append_column("error", ArrowPythonObjectArray.from_objects([error]))

    def _written(self, number: int, indices: Sequence[int]) -> Shard | None:
        if not self._folder.is_dir():
            raise RecordingError(
                f"node {self._node} has no folder {self._folder}; take one that all nodes see under the same path, such "
                f"as one of a shared file system",
                path=str(self._folder),
            )
        made_of = {**self._made_of, "versions": versions(), "blender": self._stream.blender_version}
        with contextlib.closing(self.samples(indices)) as samples:
            shard = write_shard(self._folder, number, made_of, self._encoded(samples, number))
        if shard is not None and not {span.sample for span in shard.spans} <= set(indices):
            raise RecordingError(
                f"{shard.path} was written meanwhile by a recording that had been ended; record again",
                path=str(shard.path),
            )
        return shard

    def _encoded(self, samples: Iterable[Frame], number: int) -> Iterator[tuple[int, dict[str, bytes]]]:
        """Yield index and files of each sample, and tell now and then how many there are."""
        told = -math.inf
        for count, frame in enumerate(samples, 1):
            yield frame.index, encode_sample(frame, self._images)
            if time.monotonic() - told >= _EVERY:
                told = time.monotonic()
                self._tally.note.remote(number, count, self._node)
