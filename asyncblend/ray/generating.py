"""`dataset`: a Ray Dataset whose rows are rendered."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence

import pyarrow as pa
import ray
import ray.data

from ..checks import check_whole
from ..config import Params, PathLike, StreamConfig, check_params
from ..errors import ConfigError
from ..stream.indices import own_indices
from ..warm.connection import connect
from .actors import Actors
from .nodes import BlenderVersions, start_here, wait_for_nodes
from .renderer import Job, Renderer
from .shipping import Shipment

_MOST_BLOCKS = 4096  # Ray's driver keeps all blocks of indices


def dataset(
    config: StreamConfig,
    *,
    length: int | None = None,
    params: Params | ray.data.Dataset | None = None,
    batch_size: int = 32,
    actors: int | tuple[int, int] = (1, 64),
    instances_per_actor: int = 1,
    num_cpus: float | None = None,
    num_gpus: float = 0,
    files: Iterable[PathLike] = (),
    mixed_blenders: bool = False,
) -> ray.data.Dataset:
    """Return a Ray Dataset of samples, which are rendered by actors all over the cluster when it is executed:

        samples = asyncblend.ray.dataset(ab.StreamConfig(script="scene.py"), length=100_000)
        for batch in samples.iter_torch_batches(batch_size=32): ...

    A row has `index`, the sample's values by their names, and `params` where there are any. Each array is a tensor of
    its own dtype, also where the shapes differ, such as boxes; dicts are structs; an episode is one row, whose arrays
    have time as their first axis. Rows come in any order, unless Ray's `preserve_order` is set.

    What Ray executes again after an actor or a node was lost gives the same rows, so each index comes once and with the
    same pixels. Each execution starts new actors, and so new Blenders; `materialize` keeps the rows.

    The script, the scene, and the Python files beside the script that it imports travel to the nodes. The nodes need
    asyncblend and a Blender.

    Args:
        config: What to render. Here `instances`, `ordered` and `queue_size` have no meaning, and `threads="auto"` shares
            out `num_cpus`. Samples that are skipped (`on_bad_sample`) have no row.
        length: The number of samples. None: the config's, or the rows of `params`.
        params: As in StreamConfig, but no iterator. Or a Dataset whose rows are the params, which is executed at once
            and kept: its column `index` has the samples' indices; without one, rows are numbered from the config's
            `start` on, in the order that Ray's `preserve_order` gives. None: the config's.
        batch_size: How many samples an actor renders at a time; a lost actor's tasks, of one batch each or, from 4096 batches
            on, of several, are rendered again. An
            actor begins the next batch before the last one ends, and has the frames of both in memory.
        actors: The number of actors, or the least and the greatest.
        instances_per_actor: Blenders of each actor.
        num_cpus: Ray's CPUs of each actor. None: one for each Blender.
        num_gpus: Ray's GPUs of each actor, to render on. They are shared out among its Blenders.
        files: What else the script reads: files, and folders with all that is in them. They keep their places in
            relation to the script. Where the path of one of them is among `script_args`, the script gets the new one.
        mixed_blenders: Whether nodes may have different versions of Blender, although their pixels differ.

    Raises:
        ConfigError: An argument is wrong, or a file cannot be read. What goes wrong on a node, iterating raises.
    """
    if not isinstance(config, StreamConfig):
        raise ConfigError(f"config must be a StreamConfig; got {config!r}")
    check_whole("batch_size", batch_size, 1)
    workers = Actors.checked(actors, instances_per_actor, num_cpus, num_gpus)
    if length is not None:
        check_whole("length", length, 0)
    table = params if isinstance(params, ray.data.Dataset) else None
    wanted = config.length if length is None else length
    if table is None and wanted is None:
        raise ConfigError("a Dataset is finite: give a length")
    drawn = None if table is not None else config.params if params is None else check_params(params)
    own = workers.config(dataclasses.replace(config, length=wanted, params=drawn))
    shipment = Shipment.packed(own, files)
    connect()
    rows = own_indices(own) if table is None else _numbered(table, config.start, length)
    blocks = blocks_of(rows, batch_size)
    wait_for_nodes(workers.least, workers.each)
    job = Job(shipment, None if mixed_blenders else start_here(BlenderVersions))
    return workers.map(
        ray.data.from_blocks(blocks), Renderer, job, batch_size=batch_size, samples=batch_size, prefetch=own.prefetch
    )


def _numbered(params: ray.data.Dataset, start: int, length: int | None) -> pa.Table:
    """Return the rows of a Dataset, with their indices.

    Without a column of indices, a row's index is its number in the one order that does not depend on the cluster.
    """
    rows = params if length is None else params.limit(length)
    options = rows.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        table = next(
            iter(rows.iter_batches(batch_size=sys.maxsize, batch_format="pyarrow")),
            pa.table({"index": pa.array([], pa.int64())}),
        )
    finally:
        options.preserve_order = before
    if "index" not in table.column_names:
        return table.append_column("index", pa.array(range(start, start + len(table))))
    indices = table["index"]
    if not pa.types.is_integer(indices.type) or indices.null_count:
        raise ConfigError(
            f"the column index of params must have whole numbers; it has {indices.slice(0, 3).to_pylist()}"
        )
    return table


def blocks_of(rows: pa.Table | Sequence[int], batch_size: int) -> list[pa.Table]:
    """Return the rows, or those of a sequence of indices, as tables of whole batches, each of which is one task of Ray."""
    size = batch_size * max(1, math.ceil(len(rows) / batch_size / _MOST_BLOCKS))
    parts = [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]
    return [part if isinstance(part, pa.Table) else pa.table({"index": pa.array(part, pa.int64())}) for part in parts]
