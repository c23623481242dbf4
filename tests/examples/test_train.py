"""The examples that train a network: what they learn from, that they learn, and how they end."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import train_detector, train_keypoints, training

ROOT = Path(__file__).parents[2]
KEYPOINTS = ("train_keypoints.py", "--size", "32", "--held-out", "40", "--batch", "8")
DETECTOR = ("train_detector.py", "--size", "32", "--held-out", "16", "--batch", "4")
LOSS = re.compile(r"steps: +loss (\d+\.\d+)")


def command(real: Any, out: Path, example: str, *options: str) -> list[str]:
    """Return what to type to run an example."""
    return [sys.executable, f"examples/{example}", *options, "--blender", real.blender, "--out", str(out)]


def run(line: list[str], timeout: float = 800) -> str:
    """Run an example to its end, and return what it says."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_written(out: Path) -> None:
    """Fail if the pictures or the checkpoint are missing."""
    for name in ("learning.png", "predictions.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert torch.load(out / "model.pt", weights_only=True)["stream"]["epoch"] == 0


# -- whole programs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.timeout(900)
@pytest.mark.exhaustive
def test_keypoints_are_learned_from_a_stream_and_from_a_recording(bpy_kind: Any, tmp_path: Path) -> None:
    """The loss falls in both, pictures and a checkpoint are written, and the table names both."""
    said = run(
        command(bpy_kind, tmp_path / "new" / "out", *KEYPOINTS, "--steps", "40", "--looks", "4", "--compare", "24")
    )
    assert_written(tmp_path / "new" / "out")
    for name in ("streamed", "24 recorded"):
        losses = [float(LOSS.search(line)[1]) for line in said.splitlines() if line.startswith(f"{name}, ")]  # type: ignore[index]
        assert len(losses) == 4
        assert losses[-1] < losses[0] - 0.1
    assert re.search(r"streamed +40 +320 ", said)


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.timeout(900)
@pytest.mark.exhaustive
def test_boxes_are_learned_from_a_stream(executable: Any, tmp_path: Path) -> None:
    """The loss falls, pictures and a checkpoint are written, and the table has all classes."""
    said = run(command(executable, tmp_path, *DETECTOR, "--steps", "60", "--looks", "4"))
    assert_written(tmp_path)
    first, *_, last = map(float, LOSS.findall(said))
    assert last < first - 0.3
    assert [line.split()[0] for line in said.splitlines() if line.count("%") == 2] == [
        *("cube", "ball", "cone", "cylinder", "torus", "monkey", "mean")
    ]


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.exhaustive
def test_a_training_that_was_stopped_goes_on(bpy_kind: Any, tmp_path: Path) -> None:
    """Ctrl-C ends it with a checkpoint and pictures, and no Blender is left; `--resume` goes on from there."""
    line = command(bpy_kind, tmp_path, *KEYPOINTS, "--steps", "1000000", "--looks", "200000")
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        first = next(line for line in process.stdout if LOSS.search(line))
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=200) == 130, rest
    assert first.startswith("streamed, ")
    assert "Traceback" not in rest
    stopped = re.search(r"stopped after (\d+) steps", rest)
    assert stopped is not None
    steps = int(stopped[1])
    assert_written(tmp_path)
    before = torch.load(tmp_path / "model.pt", weights_only=True)
    assert before["training"]["steps"] == steps

    resumed = ("--steps", str(steps + 5), "--looks", "1", "--resume", str(tmp_path / "model.pt"))
    run(command(bpy_kind, tmp_path, *KEYPOINTS, *resumed))
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    assert after["training"]["steps"] == steps + 5
    assert len(after["training"]["looks"]) > len(before["training"]["looks"])
    assert after["training"]["spent"] > before["training"]["spent"]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("example", "steps", "score", "bar"),
    [
        pytest.param("train_keypoints.py", 240, "found", 0.4, id="keypoints"),
        pytest.param("train_detector.py", 96, "AP50", 0.05, id="boxes"),
    ],
)
def test_what_is_learned_holds_for_held_out_samples(
    example: str, steps: int, score: str, bar: float, bpy_kind: Any, tmp_path: Path
) -> None:
    """After some of the steps of a whole run, the score of samples that the network has not seen is above the bar."""
    options = ("--steps", str(steps), "--looks", "1", "--held-out", "100")
    said = run(command(bpy_kind, tmp_path, example, *options), timeout=1400)
    found = re.search(rf"{score} (\d\.\d+)", said)
    assert found is not None
    assert float(found[1]) > bar


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fixed", "0"), "argument --fixed: it must be at least 1, not 0"),
        (("--size", "40"), "argument --size: it must be a multiple of 16, not 40"),
        (("--resume", "model.pt", "--compare", "5"), "--fixed and --resume are for one"),
    ],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_what_cannot_be_trained_on_is_refused(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Before anything is started."""
    line = [sys.executable, "examples/train_keypoints.py", *options, "--out", str(tmp_path / "out")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


# -- parts ---------------------------------------------------------------------------------------------------------


def test_maps_of_keypoints_are_read_to_a_part_of_a_pixel() -> None:
    """The maps whose loss is the least point at the truth, though there are only half as many places as pixels."""
    truth = torch.tensor([[[10.3, 21.8, 2], [30.0, 5.1, 1], [-50, 90, 0]]])
    maps = torch.zeros(1, 3, 24, 20, requires_grad=True)
    optimizer = torch.optim.Adam([maps], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = train_keypoints.loss_of(maps, {"keypoints": truth})
        torch.autograd.backward(loss)
        optimizer.step()
    torch.testing.assert_close(train_keypoints.places(maps.detach())[0, :2], truth[0, :2, :2], atol=0.1, rtol=0)
    assert torch.equal(maps[0, 2], torch.zeros(24, 20))  # nothing is learned of what is outside the image


@pytest.mark.exhaustive
@pytest.mark.slow
def test_maps_of_boxes_are_read_as_they_are_learned() -> None:
    """The maps whose loss is the least give the true boxes first, and pycocotools finds them perfect."""
    edges = torch.tensor(
        [[[4, 6, 20, 18], [30, 10, 37, 30], [0, 0, 5, 5]], [[10, 10, 30, 40], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    counts = torch.tensor([[True, True, False], [True, False, False]])
    batch = {"edges": edges.float(), "class_id": torch.tensor([[1, 2, 1], [2, 2, 1]]), "counts": counts}
    maps = torch.zeros(2, 6, 24, 24, requires_grad=True)
    optimizer = torch.optim.Adam([maps], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        torch.autograd.backward(train_detector.loss_of(maps, batch))
        optimizer.step()
    found, chances, classes = train_detector.boxes_of(maps.detach())
    torch.testing.assert_close(found[1, 0], edges[1, 0].float(), atol=0.3, rtol=0)
    assert (chances > 0.5).sum(dim=1).tolist() == [2, 1]
    assert sorted(classes[0, :2].tolist()) == [1, 2]

    class Given(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return maps.detach()

    held_out = {"image": torch.zeros(2, 48, 48, 3), **batch}
    assert train_detector.precision(Given(), held_out, train_detector.truth_of(held_out)).min() == pytest.approx(1)


def test_a_mirrored_batch_has_its_boxes_mirrored() -> None:
    """The pixels of each box are the same, from right to left; the batch itself is left as it is."""
    image = torch.arange(5 * 8 * 3, dtype=torch.uint8).reshape(1, 5, 8, 3)
    batch = {"image": image, "edges": torch.tensor([[[1.0, 2, 3, 5]]])}
    other = train_detector.mirrored(batch)
    assert other["edges"].tolist() == [[[5, 2, 7, 5]]]
    assert torch.equal(other["image"][:, 2:5, 5:7].flip(2), image[:, 2:5, 1:3])
    assert batch["edges"].tolist() == [[[1, 2, 3, 5]]]


def test_a_batch_is_used_several_times_while_it_is_new() -> None:
    """Each new batch is followed by some of the last ones, and the order is the seed's."""
    found = [batch["number"] for batch in training.reused(({"number": n} for n in range(100)), 3, seed=1, kept=4)]
    assert found[::3] == list(range(100))
    assert all(n - 3 <= other <= n for n, other in zip(found[::3], found[1::3], strict=True))
    assert found == [batch["number"] for batch in training.reused(({"number": n} for n in range(100)), 3, 1, 4)]


@pytest.mark.parametrize("looks", [1, 3])
def test_a_training_has_its_looks_and_ends(looks: int) -> None:
    """Also one whose steps are fewer than its looks. With the budget spent, it says so instead of going on for ever."""
    model = torch.nn.Linear(1, 1)
    run = training.Training(model, training.Budget(1, steps=2))
    batches = itertools.repeat({"image": torch.ones(1, 1)})

    def train() -> list[training.Look | None]:
        steps = run.run(batches, lambda made, _: made.sum(), lambda _: {}, looks)
        return list(itertools.islice(steps, 5))

    found = train()
    assert len(found) == 2
    assert found[-1] is not None
    with pytest.raises(SystemExit, match="the budget is spent already: give more --minutes"):
        train()


def test_what_samples_have_fewer_objects_of_is_padded() -> None:
    """Objects that are missing count as none; those of no sample at all are allowed, too."""
    image = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    boxes = [torch.tensor([[1.0, 2, 3, 4], [0, 0, 2, 2]]), torch.zeros(0, 4)]
    batch = {"image": image, "bbox": boxes, "class_name": [["cup", "jug"], []]}
    batch |= {"visible_fraction": [torch.tensor([1.0, 0.1]), torch.zeros(0)]}
    batch |= {"class_id": [torch.tensor([3, 2]), torch.zeros(0, dtype=torch.int64)]}
    found = train_detector.labelled(batch)
    assert found["edges"].tolist() == [[[1, 2, 4, 6], [0, 0, 2, 2]], [[0, 0, 0, 0]] * 2]
    assert found["class_id"].tolist() == [[3, 2], [0, 0]]
    assert found["counts"].tolist() == [[True, False], [False, False]]
    assert train_detector.classes_of(batch) == {2: "jug", 3: "cup"}
    assert train_detector.loss_of(torch.zeros(2, 7, 4, 4), found).isfinite()


def test_a_recording_is_shuffled_anew_in_each_epoch() -> None:
    """Each epoch has whole batches of different samples, in another order."""
    samples = {"image": torch.arange(10)}
    batches = [batch["image"].tolist() for batch in itertools.islice(train_keypoints.repeated(samples, 4, 0), 6)]
    epochs = [batches[at] + batches[at + 1] for at in (0, 2, 4)]
    assert all(len({*epoch}) == 8 for epoch in epochs)
    assert len({*map(tuple, epochs)}) == 3
    assert [len(batch["image"]) for batch in itertools.islice(train_keypoints.repeated(samples, 64, 0), 2)] == [10, 10]


def test_the_time_of_blenders_counts_as_the_processors() -> None:
    """Children that are still running count, and so do those that have ended."""
    before = training.processor_seconds()
    burn = "import time\nwhile time.process_time() < 0.6: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert training.processor_seconds() > before + 0.5
    assert training.processor_seconds() > before + 0.5
