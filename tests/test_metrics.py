"""Metrics for Prometheus, as its own client's parser reads them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import asyncblend as ab
from asyncblend import metrics
from asyncblend.testing import fake_blender

pytest.importorskip("prometheus_client", reason='needs pip install "asyncblend[metrics]"')

LIMIT = 60.0  # seconds; the bound of failure of every wait here
IMAGE = "def sample(task): return {'image': np.zeros((8, 8), np.uint8)}"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(url: str) -> tuple[Samples, dict[str, str]]:
    """Return what Prometheus gets: values by name and labels, and the type of each family."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=LIMIT) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = {
        (one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples
    }
    return samples, {family.name: family.type for family in families}


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.02)
    return found


@pytest.fixture
def config(tmp_path: Path, write_script: Callable[..., Path]) -> ab.StreamConfig:
    return ab.StreamConfig(
        script=write_script(IMAGE), blender=fake_blender(tmp_path / "fake"), instances=2, queue_size=4
    )


def test_each_request_reads_the_stream_anew(config: ab.StreamConfig) -> None:
    """Counters count, gauges tell of now, and what is known by instance has its label."""
    with ab.BlenderStream(config).sync() as stream, metrics.serve(stream) as server:
        assert server.url == f"http://127.0.0.1:{server.port}/metrics"
        for _ in range(5):
            next(stream)
        before, types = scraped(server.url)
        assert before["asyncblend_delivered_total", ()] == 5
        assert before["asyncblend_bytes_total", ()] == 5 * 64
        for _ in range(5):
            next(stream)
        idle = ("asyncblend_state", (("asyncblend_state", "idle"), ("instance", "0")))
        until(lambda: scraped(server.url)[0]["asyncblend_occupancy", ()] > 0.5 and scraped(server.url)[0][idle])
        after, _ = scraped(server.url)
        assert after["asyncblend_delivered_total", ()] == 10
        of = {number: (("instance", str(number)),) for number in range(2)}
        assert sum(after["asyncblend_frames_total", of[number]] for number in of) >= 10
        assert after["asyncblend_restarts_total", of[1]] == 0
        assert after[idle] == 1
        assert after["asyncblend_state", (("asyncblend_state", "failed"), ("instance", "0"))] == 0
        assert after["asyncblend_seconds_sample", (("of", "median"),)] > 0
        assert (types["asyncblend_delivered"], types["asyncblend_queued"]) == ("counter", "gauge")
        assert (types["asyncblend_frames"], types["asyncblend_seconds_idle"]) == ("counter", "gauge")


async def test_of_a_stream_in_an_event_loop(config: ab.StreamConfig) -> None:
    """The program's loop need not run for that; restarts are counted by instance."""
    async with ab.BlenderStream(config) as stream:
        await anext(stream)
        with metrics.serve(stream) as server:
            assert scraped(server.url)[0]["asyncblend_delivered_total", ()] == 1  # blocks the loop meanwhile


def test_restarts_are_those_of_each_instance(tmp_path: Path, write_script: Callable[..., Path]) -> None:
    """Only the second Blender crashes, once."""
    fake = fake_blender(tmp_path / "fake", crash_after=1, lives=1, instances=[1])
    options: dict[str, Any] = {"blender": fake, "instances": 2, "restart": ab.RestartPolicy(backoff=0.0)}
    with ab.BlenderStream(script=write_script(IMAGE), **options).sync() as stream:
        while not stream.stats().restarts:
            next(stream)
        assert stream.stats().instance_restarts == {0: 0, 1: 1}


def test_a_dataset_has_metrics_once_it_is_iterated(config: ab.StreamConfig) -> None:
    """Before, there is nothing to say of it; a pass has those of its own."""
    dataset = ab.BlenderDataset(config)
    with metrics.serve(dataset) as server:
        assert scraped(server.url)[0] == {}
        iterator = iter(dataset)
        next(iterator)
        assert scraped(server.url)[0]["asyncblend_delivered_total", ()] == 1
        dataset.close()
        assert scraped(server.url)[0]["asyncblend_delivered_total", ()] == 1
    with ab.BlenderStream(config).sync() as stream, stream.frames(range(3)) as frames:
        assert len(list(frames)) == 3
        with metrics.serve(frames) as server:
            found, _ = scraped(server.url)
    assert found["asyncblend_delivered_total", ()] == 3
    assert not any(name.startswith(("asyncblend_state", "asyncblend_frames")) for name, _ in found)


def test_a_forked_process_does_not_keep_the_port(config: ab.StreamConfig) -> None:
    """Nor can it end the server, which it has only inherited: neither by closing it nor at its exit."""
    server = metrics.serve(ab.BlenderDataset(config))
    context = multiprocessing.get_context("fork")
    go_on = context.Event()

    def live() -> None:
        server.close()
        go_on.wait(LIMIT)

    child = context.Process(target=live)
    child.start()
    try:
        assert scraped(server.url)[0] == {}
        server.close()
        metrics.serve(ab.BlenderDataset(config), server.port).close()
    finally:
        go_on.set()
        child.join(LIMIT)
    assert child.exitcode == 0


def test_a_server_that_nobody_keeps_is_not_inherited_either(config: ab.StreamConfig) -> None:
    """It serves on, and a forked process has no copy of its socket."""
    port = metrics.serve(ab.BlenderDataset(config)).port
    gc.collect()
    assert scraped(f"http://127.0.0.1:{port}/metrics")[0] == {}
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(len(listening(port))))
    child.start()
    child.join(LIMIT)
    assert child.exitcode == 0
    assert len(listening(port)) == 1
    for server in list(metrics._open):
        server.close()


def listening(port: int) -> list[Any]:
    return [one for one in psutil.Process().net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"]


def test_in_a_worker_its_own_waiting_counts(config: ab.StreamConfig, tmp_path: Path) -> None:
    """A DataLoader's worker that nobody takes batches from is full, and its Blenders wait for the training process."""
    from torch.utils.data import DataLoader, get_worker_info

    def serve(worker: int) -> None:
        info: Any = get_worker_info()
        (tmp_path / "port.new").write_text(metrics.serve(info.dataset).url)
        (tmp_path / "port.new").rename(tmp_path / "port")

    loader = DataLoader(ab.BlenderDataset(config), batch_size=2, num_workers=1, prefetch_factor=1, worker_init_fn=serve)
    iterator = iter(loader)
    next(iterator)
    url = (tmp_path / "port").read_text()
    until(lambda: scraped(url)[0]["asyncblend_occupancy", ()] > 0.9)
    assert scraped(url)[0]["asyncblend_idle", ()] > 0.5
    del iterator


def test_what_is_wrong_is_said(config: ab.StreamConfig, monkeypatch: pytest.MonkeyPatch, case: Any) -> None:
    """A port that is taken or none, and a package that is missing."""
    stream = ab.BlenderStream(config)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ab.ConfigError, match=rf"port {port} of 127.0.0.1: Address already in use; choose another"):
            metrics.serve(stream, port)
    for bad in (-1, 65536, "9100", True, 1.5):
        with case(bad), pytest.raises(ab.ConfigError, match="port must be"):
            metrics.serve(stream, bad)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "asyncblend\[metrics\]"'):
        metrics.serve(stream)


def test_only_this_machine_can_connect(config: ab.StreamConfig) -> None:
    """It listens on loopback, not on all addresses. What is closed does not listen, and may be closed again."""
    server = metrics.serve(ab.BlenderStream(config))
    address, port = server._http.socket.getsockname()
    assert (address, port) == ("127.0.0.1", server.port)
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT)


GATED = """
import pathlib, time
from asyncblend import blender as bl
def sample(task):
    while task.index and not pathlib.Path("go").exists():
        time.sleep(0.01)
    return {"value": task.index}
bl.serve(sample)
"""


@pytest.mark.parametrize("port", ["0", "taken"])
def test_the_command(port: str, tmp_path: Path) -> None:
    """It says where it serves, and serves while it streams; a port that is taken is an error before anything starts."""
    (tmp_path / "scene.py").write_text(GATED)
    fake = fake_blender(tmp_path / "fake")
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = port if port == "0" else str(other.getsockname()[1])
        command = [
            "stream",
            "scene.py",
            "--length",
            "3",
            "--instances",
            "1",
            "--metrics",
            number,
            "--blender",
            str(fake),
        ]
        with subprocess.Popen(
            [sys.executable, "-m", "asyncblend", *command],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            if port == "0":
                assert process.stderr is not None
                url = next(filter(None, (re.search(r"http://127.0.0.1:\d+/metrics", line) for line in process.stderr)))[
                    0
                ]
                until(lambda: scraped(url)[0]["asyncblend_delivered_total", ()] == 1)
            (tmp_path / "go").touch()
            out, err = process.communicate(timeout=LIMIT)
    if port == "0":
        assert process.returncode == 0, err
        assert re.search(r"^verdict +rendering alone: ", out, re.MULTILINE), out
    else:
        assert process.returncode == 1
        assert err.startswith(f"ConfigError metrics cannot be served on port {number}")
