"""`python -m benchmarks gpu`, as far as it goes without a GPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asyncblend.errors import ConfigError
from benchmarks.gpu import command, seen
from benchmarks.gpu.images import Images, Setup
from benchmarks.gpu.seen import Seen, cards, check_torch, choose, visible
from benchmarks.gpu.training import Training, hidden, overlap
from benchmarks.measuring import Effort, Timed
from benchmarks.report import Metric, Report

ROOT = Path(__file__).parents[1]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available() or bool(cards()), reason="there is a GPU here")


def run(*options: str, timeout: float) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "benchmarks", "gpu", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@needs_no_gpu
@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.exhaustive
def test_without_a_gpu_it_says_what_it_found(tmp_path: Path, bpy_kind: Any) -> None:
    """It names what each Blender would render on, and what to do; nothing is written."""
    done = run("--blender", bpy_kind.blender, "--out", str(tmp_path / "out"), timeout=200)
    assert done.returncode == 1, done.stderr
    assert "ConfigError: no device that Cycles or EEVEE could render on: bpy" in done.stdout
    assert "Cycles on no GPU, EEVEE by " in done.stdout
    assert "run it with --processor to try the command itself" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.parametrize("name", ["bpy", "executable"])
def test_it_can_be_tried_on_the_processor(name: str, tmp_path: Path, real_kind: Any) -> None:
    """All tables and pictures are there, and the file says that its figures mean nothing."""
    kind, figures = real_kind(name), tmp_path / "figures.json"
    options = ["--processor", "--minutes", "0.5", "--blender", kind.blender, "--out", str(tmp_path)]
    done = run(*options, "--json", str(figures), timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "RESULTS-GPU.md").read_text(encoding="utf-8")
    assert "These figures say nothing about a GPU." in text
    assert "| GPU | " in text
    assert "| first frame: Cycles, 1 sample | after " in text
    reports = {one["name"]: one["cases"] for one in json.loads(figures.read_text())["reports"]}
    assert reports.keys() >= {"gpu-images", "gpu-copies"}
    for table, cases in reports.items():
        assert (tmp_path / "pictures" / f"{table}.png").read_bytes().startswith(b"\x89PNG")
        for ways in cases.values():
            assert all(metric["median"] > 0 for way in ways.values() for key, metric in way.items() if "is_" not in key)
    assert all(
        case.keys() == {"async for", "training", "bare render (limit)"} for case in reports["gpu-images"].values()
    )
    assert all(
        case.keys() == {"streamed", "copied first", "there already (limit)"} for case in reports["gpu-copies"].values()
    )


def test_the_blender_with_the_most_gpu_is_chosen() -> None:
    """Cycles on a GPU is better than none, by OptiX is better than by CUDA, and EEVEE there too is best."""
    none = Seen("none", "a", renderer="llvmpipe")
    cycles = Seen("cycles", "b", cycles="CUDA (a card)", ended="no display")
    both = Seen("both", "c", cycles="OPTIX (a card)", eevee="BLENDER_EEVEE", renderer="a card", software=False)
    optix = dataclasses.replace(cycles, cycles="OPTIX (a card)")
    assert choose([none, cycles], processor=False) is cycles
    assert choose([cycles, optix], processor=False) is optix
    assert choose([cycles, both, none], processor=False) is both
    assert choose([cycles, none], processor=True) is none
    with pytest.raises(ConfigError, match="none has Cycles on no GPU, EEVEE by the processor: llvmpipe"):
        choose([none], processor=False)


@needs_no_gpu
def test_a_build_of_torch_without_cuda_is_an_error() -> None:
    """It says what to install."""
    with pytest.raises(ConfigError, match=r"PyTorch .* finds no GPU to train on: install its build"):
        check_torch()


def test_gpus_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are NVIDIA's numbers, or what CUDA_VISIBLE_DEVICES has."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho '0, NVIDIA H200, 143771 MiB, 570.86.15'\necho '1, NVIDIA H200, 143771 MiB, 570.86.15'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = cards()
    assert [(one.number, one.name, one.memory, one.driver) for one in found] == [
        (number, "NVIDIA H200", "143771 MiB", "570.86.15") for number in ("0", "1")
    ]
    assert visible(found) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5d")
    assert visible(found) == ["3", "GPU-5d"]
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert cards() == []
    tool.write_text("#!/bin/sh\nexec /bin/sleep 100\n")
    monkeypatch.setattr(seen, "_PATIENCE", 0.2)
    assert cards() == []


def test_blendtorchs_claim_stands_beside_five_instances() -> None:
    """It is a row of EEVEE's case with as many instances as it was made for, and of no other."""
    engines = {"BLENDER_EEVEE_NEXT": "EEVEE, 1 sample", "CYCLES": "Cycles, 16 samples"}
    images = Images(Setup("bpy", engines, ["0"], "cuda", 640, 480, 16, (5, 1), {}), "Images")
    for case in [(engine, instances) for instances in (5, 1) for engine in engines]:
        images.found[case] = {"async for": [Timed(470, 1.0)]}
    report = images.report()
    assert list(report.cases) == [
        f"{name}, 640x480, {count}" for name in engines.values() for count in ("1 instance", "5 instances")
    ]
    (claim,) = [row for row in report.rows if row.way == "blendtorch's claim"]
    assert claim.case == "EEVEE, 1 sample, 640x480, 5 instances"
    assert report.ratio(claim) == 5.0


@pytest.mark.slow
@pytest.mark.blender
def test_what_fails_is_noted_and_the_rest_is_measured(
    tmp_path: Path, bpy_kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU whose memory is full with many instances must not lose what was measured with fewer."""
    written: list[tuple[list[str], dict[str, str]]] = []

    def save(reports: Sequence[Report], about: Mapping[str, str]) -> None:
        written.append(([one.name for one in reports], dict(about)))

    def full(self: Images, instances: int, how: Effort) -> None:
        if instances > 1:
            raise RuntimeError("System is out of GPU memory\nand more")
        self.found["CYCLES", instances] = {"async for": [Timed(1, 1.0)]}

    copied = Report("gpu-copies", "Copies", "How.", [Metric("ms/step", lambda timed: timed.rate)])
    copied.add("case", {"streamed": [Timed(1, 1.0)]})
    monkeypatch.setattr(Images, "measure", full)
    monkeypatch.setattr(command, "copies", lambda *_: copied)
    setup = Setup(bpy_kind.blender, {"CYCLES": "Cycles, 1 sample"}, (), "cpu", 32, 24, 1, (1, 8), {})
    run = command.Run(setup, {"measured": "bpy"}, time.monotonic() + 300, save)
    assert [one.name for one in run.run()] == ["gpu-images", "gpu-copies"]
    assert run.failed
    names, about = written[-1]
    assert names == ["gpu-images", "gpu-copies"]
    assert about["failed: 8 instances"] == "RuntimeError: System is out of GPU memory"
    assert about["first frame: Cycles, 1 sample"].startswith("after ")
    assert [reports for reports, _ in written[:2]] == [[], ["gpu-images"]], "it is saved as it comes"


def test_a_step_trains() -> None:
    """The loss of the same batch falls."""
    torch.manual_seed(0)
    training = Training("cpu", 64)
    batch = {"image": torch.randint(256, (4, 48, 64, 3), dtype=torch.uint8), "xy": 64 * torch.rand(4, 8, 2)}
    losses = [training.step(batch) for _ in range(20)]
    training.wait()
    assert losses[-1].item() < losses[0].item()


def test_spans_within_others_count_once() -> None:
    """Spans that overlap each other are one, whatever their order."""
    assert overlap([(0, 10)], [(4, 8), (2, 6), (5, 6), (20, 30)]) == 0.6
    assert overlap([(0, 2), (3, 5)], [(1, 4)]) == 0.5
    assert overlap([(0, 2)], []) == 0.0


def test_copies_are_hidden_while_kernels_run() -> None:
    """Copies in other directions, what is set, and what the host does are neither."""
    events = [
        event("Memcpy HtoD (Pinned -> Device)", 0, 10),
        event("sm90_xmma_fprop", 5, 20),
        event("Memcpy DtoH (Device -> Pageable)", 0, 5),
        event("Memset (Device)", 0, 5),
        event("cudaLaunchKernel", 0, 5, device="CPU"),
    ]
    assert hidden(events) == 0.5
    assert hidden(events[1:]) is None


def event(name: str, start: float, end: float, device: str = "CUDA") -> Any:
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, device_type=SimpleNamespace(name=device), time_range=span)
