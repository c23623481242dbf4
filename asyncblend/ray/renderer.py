"""Renderer: the callable class of which each actor of Ray has one. It owns a warm fleet."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from ..errors import AsyncblendError, ConfigError
from ..fleet.workspace import Workspace
from ..stream.frame import Frame
from ..stream.sync import SyncStream
from .rows import table_of
from .shipping import Shipment


@dataclasses.dataclass(frozen=True, eq=False)  # Ray looks the renderer up by the hash of its arguments
class Job:
    """What all actors of one dataset are told."""

    shipment: Shipment
    versions: ray.actor.ActorHandle | None
    """Where the actors agree on a version of Blender. None: they need not."""


class Renderer:
    """Renders the rows of one batch at each call. Several threads call it, and their batches overlap.

    The next batch begins when the last sample of the one before it has been leased. So a Blender that finds nothing more
    to render in one batch goes on with the next, and no batch takes Blenders from the one before it.
    """

    def __init__(self, job: Job) -> None:
        resources = contextlib.ExitStack()
        self._finalizer = weakref.finalize(self, resources.close)
        context = ray.get_runtime_context()
        workspace = resources.enter_context(Workspace())
        config = job.shipment.unpacked(workspace.folder)
        if gpus := context.get_accelerator_ids().get("GPU"):
            config = dataclasses.replace(config, gpus=gpus)
        if config.logs is not None:
            config = dataclasses.replace(config, logs=Path(config.logs, context.get_actor_id()))
        self._params = config.params
        self._stream = SyncStream(config)
        self._stream.consumer = "Ray"
        resources.callback(self._stream.close)
        self._turn = threading.Lock()
        self._leased = threading.Event()  # whether all of the batch that was begun last has been leased
        self._leased.set()
        self._refusal = ""  # why no rows are rendered
        with contextlib.suppress(AsyncblendError):  # a pass raises it again; from here, Ray would bury it in its own
            self._stream.start()
            if job.versions is not None:
                self._refusal = self._disagreement(job.versions, context.get_node_id())

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows of these indices, in their order. Other columns are their params; else the config's are drawn."""
        indices = batch["index"].to_pylist()
        own = batch.drop_columns("index").to_pylist() if batch.num_columns > 1 else None
        samples = list(self.samples(indices, own, queue_size=len(indices)))
        if samples:  # else all of them were bad, and skipped
            yield table_of(samples)

    def samples(
        self, indices: Sequence[int], own: Sequence[Mapping[str, Any]] | None = None, *, queue_size: int | None = None
    ) -> Generator[Frame]:
        """Render these indices, and yield their samples in their order, when it is their turn.

        Args:
            indices: At least one.
            own: The params of each. None: the config's are drawn.
            queue_size: How many frames may be in memory. None: as the config has it.
        """
        if self._refusal:
            raise ConfigError(self._refusal)
        with self._turn:
            before, self._leased = self._leased, threading.Event()
            leased = self._leased
        try:
            before.wait()
            params = _drawn(indices, own, self._params, leased.set)
            with self._stream.frames(indices, params=params, ordered=True, queue_size=queue_size) as frames:
                yield from frames.samples()
        finally:
            leased.set()

    def _disagreement(self, versions: ray.actor.ActorHandle, node: str) -> str:
        own = self._stream.blender_version
        try:
            first, whose = ray.get(versions.agree.remote(own, f"node {node}"))
        except RayError as error:
            return (
                f"node {node} has Blender {own or 'of no version'}, and it cannot be known any more which one the others "
                f"have, because the actor that knew it was lost; begin again ({str(error).strip()})"
            )
        if own == first:
            return ""
        return (
            f"node {node} has Blender {own or 'of no version'}, but {whose} has {first or 'one of no version'}, and their "
            f"pixels differ; install the same version on all nodes, or give `dataset` mixed_blenders=True"
        )


def _drawn(
    indices: Sequence[int], own: Sequence[Mapping[str, Any]] | None, params: Any, last: Callable[[], None]
) -> Iterator[Mapping[str, Any]]:
    """Yield the params of each sample, which is leased then. Call `last` when the last one is."""
    for place, index in enumerate(indices):
        if place == len(indices) - 1:
            last()
        if own is not None:
            yield own[place]
        else:
            yield params(index) if callable(params) else params or {}
