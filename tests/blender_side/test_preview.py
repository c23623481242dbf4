"""What `serve` shows without a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from asyncblend.blender.serving.preview import preview

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "cube.py"
    path.touch()
    return path


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)], ids=["grey", "rgb", "rgba"])
def test_saves_exactly_the_pixels_beside_the_script(script: Path, shape: tuple[int, ...]) -> None:
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    preview({"image": image}, str(script))
    np.testing.assert_array_equal(np.asarray(Image.open(script.with_name("cube.png"))), image)


def test_saves_an_array_that_is_not_contiguous(script: Path) -> None:
    image = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)[::-1, ::2]
    preview({"image": image}, str(script))
    np.testing.assert_array_equal(np.asarray(Image.open(script.with_name("cube.png"))), image)


def test_names_other_images_after_their_key(script: Path) -> None:
    image = np.zeros((2, 2), np.uint8)
    preview({"mask": image, "left/eye": image, "views": {"top": image}}, str(script))
    names = {path.name for path in script.parent.glob("*.png")}
    assert names == {"cube.mask.png", "cube.left_eye.png", "cube.views.top.png"}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(np.zeros((2, 2, 3), np.float32), id="float"),
        pytest.param(np.zeros((2, 2, 2), np.uint8), id="two-channels"),
        pytest.param(np.zeros(4, np.uint8), id="one-dimension"),
        pytest.param(np.zeros((0, 2, 3), np.uint8), id="empty"),
        pytest.param(np.zeros((5, 2, 2, 3), np.uint8), id="clip"),
    ],
)
def test_saves_nothing_that_is_not_an_image(
    script: Path, value: np.ndarray[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    preview({"image": value}, str(script))
    assert list(script.parent.glob("*.png")) == []
    assert capsys.readouterr().out.splitlines()[1].startswith("  not saved: a picture is uint8 and H x W, ")


def test_prints_a_line_about_each_value(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    preview({"image": image, "xy": np.zeros((8, 2), np.float32), "label": "cube", "pose": {"x": 1.5}}, str(script))
    assert capsys.readouterr().out.splitlines() == [
        "image: uint8, shape (4, 6, 3)",
        f"  saved as {script.with_name('cube.png')}",
        "xy: float32, shape (8, 2)",
        "label: str, 'cube'",
        "pose.x: float, 1.5",
    ]


@pytest.mark.parametrize("script", [None, "scene.blend/Text"])
def test_without_a_script_file_saves_into_the_current_folder(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preview({"image": np.zeros((2, 2), np.uint8)}, script)
    assert (tmp_path / "sample.png").is_file()


def test_says_why_an_image_cannot_be_written(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.with_name("cube.png").mkdir()
    preview({"image": np.zeros((2, 2), np.uint8), "n": 1}, str(script))
    out = capsys.readouterr().out
    assert "not saved" in out
    assert out.endswith("n: int, 1\n")
