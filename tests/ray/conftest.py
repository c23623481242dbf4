"""A real local cluster of Ray, of several nodes, that leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

LIMIT = 100  # seconds; the bound of failure of every wait
QUIET = {
    "RAY_AUTH_MODE": "disabled",  # else a token is written into the home folder
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USAGE_DISABLED": "1",  # else a thread logs while the interpreter ends
    "RAY_health_check_timeout_ms": "100000",  # a slow machine is not a dead one
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


class Cluster:
    """Some nodes on this machine, which this process is a driver of.

    All that a cluster starts has a mark in its environment, and writes into one folder.
    """

    def __init__(self, *nodes: dict[str, Any]) -> None:
        import ray
        from ray.cluster_utils import Cluster as RaysOwn

        # A short path, because sockets lie in it. Several clusters may run at once.
        self.folder = Path(tempfile.mkdtemp(prefix="abr", dir="/tmp"))
        self.mark = uuid.uuid4().hex
        self._environment = {**QUIET, "TMPDIR": str(self.folder), "ASYNCBLEND_TEST": self.mark}
        with mock.patch.dict(os.environ, self._environment):
            head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(self.folder / "ray")}
            self._rays = RaysOwn(initialize_head=True, head_node_args=head)
            self.address: str = self._rays.address
            ray.init(self.address, log_to_driver=False)
        for options in nodes:
            self.add(wait=False, **options)
        self._rays.wait_for_nodes(LIMIT)

    def add(self, *, wait: bool = True, **options: Any) -> Any:
        """Start another node, and return it."""
        with mock.patch.dict(os.environ, self._environment):
            node = self._rays.add_node(wait=False, **options)
        if wait:
            self._rays._wait_for_node(node, LIMIT)
        return node

    def remove(self, node: Any, *, graceful: bool = True) -> None:
        """End a node with all that runs on it. A graceful end is one that the cluster notices at once."""
        self._rays.remove_node(node, allow_graceful=graceful)

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Return what this cluster runs, with this word in its command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.status() != psutil.STATUS_ZOMBIE
                    and process.environ().get("ASYNCBLEND_TEST") == self.mark
                    and word in " ".join(process.cmdline())
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def actors(self) -> list[psutil.Process]:
        """Return the processes that render for a dataset."""
        return self.processes("MapWorker")

    def blenders(self) -> list[psutil.Process]:
        """Return the fake Blenders that are instances of a fleet."""
        return [process for process in self.processes("/fake/main.py") if "instance=" in " ".join(process.cmdline())]

    def keepers(self) -> set[int]:
        """Return the process ids of what started those, one on the node of each."""
        return {blender.ppid() for blender in self.blenders()}

    def folders(self) -> list[Path]:
        """Return the folders of asyncblend."""
        return list(self.folder.glob("asyncblend-*"))

    def end(self) -> None:
        """End all nodes, and fail if anything is left."""
        import ray

        try:
            ray.shutdown()
            until(lambda: not self.folders(), lambda: f"folders left behind: {self.folders()}")
            self._rays.shutdown()
            until(lambda: not self.processes(), lambda: f"processes left behind: {self.processes()}")
        finally:
            for process in self.processes():
                process.kill()
            shutil.rmtree(self.folder, ignore_errors=True)


def until(condition: Callable[[], Any], otherwise: Callable[[], str] = str) -> None:
    """Wait for a condition that other processes fulfil."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, otherwise()
        threading.Event().wait(0.05)
