"""Points under names that a sample declares: where they are drawn, in which colours, and what is listed instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asyncblend.pictures import contact_sheet
from asyncblend.pictures.canvas import Canvas
from asyncblend.pictures.drawing import annotated, drawn_picture
from asyncblend.pictures.shown import Shown

IMAGE = np.full((160, 200, 3), 100, np.uint8)
RED, ORANGE, YELLOW = (0xFF, 0x5D, 0x5D), (0xFF, 0xB1, 0x3D), (0xF4, 0xEE, 0x4E)
TWO = np.array([(50.5, 60.5), (150.5, 60.5)], np.float32)


def drawn(names: list[str] | None = None, **values: Any) -> Any:
    """Return the annotated image, 160 x 200 x 3 int."""
    return np.asarray(annotated(Shown({"image": IMAGE, "index": 0, **values}), 200, 160, names)).astype(int)


def near(colour: Any, other: Any) -> bool:
    return bool(np.abs(np.asarray(colour, int) - np.asarray(other, int)).max() < 24)


@pytest.mark.parametrize("declared", [["corners"], ("corners",), "corners", {"corners": "image"}, {"corners": ""}])
def test_a_single_name_has_the_colours_of_its_order(declared: Any) -> None:
    """Each point has a colour of its own, as those of "xy", in whatever form the name is declared."""
    item = {"corners": TWO, "points": declared}
    picture = drawn(**item)
    assert near(picture[60, 50], RED)
    assert near(picture[60, 150], ORANGE)
    assert Shown({"image": IMAGE, "index": 0, **item}).rest() == ""


def test_of_several_names_each_has_a_colour() -> None:
    """The colour is the same in all samples of a sheet, whichever names a sample has."""
    down, up = TWO.copy(), TWO.copy()
    down[:, 1], up[:, 1] = 120.5, 20.5
    item: dict[str, Any] = {"corners": TWO, "grasp": down, "xy": up, "points": ["corners", "grasp"]}
    picture = drawn(**item)
    for y, colour in ((60, RED), (120, ORANGE), (20, YELLOW)):
        assert near(picture[y, 50], colour)
        assert near(picture[y, 150], colour)
    picture = drawn(["corners", "grasp", "xy"], grasp=TWO, points=["grasp"])
    assert near(picture[60, 50], ORANGE)


def test_a_third_column_is_the_visibility() -> None:
    """As keypoints, points are full, hollow or not drawn; any axes before the last are points."""
    flags = np.array([[[50.5, 60.5, 2], [100.5, 60.5, 1]], [[150.5, 60.5, 0], [np.nan, np.inf, 2]]])
    picture = drawn(corners=flags, points=["corners"])
    assert near(picture[60, 50], RED)
    assert near(picture[60, 100], (100, 100, 100))
    assert (picture[50:70, 90:110] != 100).any()
    assert (picture[:, 120:] == 100).all()


def test_points_of_another_image() -> None:
    """They are on it, in its pixels, and not on the main image."""
    item = {"image": IMAGE, "right": IMAGE[:80, :100], "corners": TWO / 2, "points": {"corners": "right"}}
    shown = Shown({"index": 0, **item})
    assert (np.asarray(annotated(shown, 200, 160)) == 100).all()
    picture = np.asarray(drawn_picture(shown, "right", 400, 320, ["corners"]))
    assert near(picture[121, 101], RED)
    assert shown.rest() == ""
    contact_sheet([item], "title")


@pytest.mark.parametrize(
    ("corners", "declared"),
    [
        (TWO, ["edges"]),
        (TWO, {"corners": "left"}),
        (TWO, [3]),
        (TWO, {"corners": 3}),
        (TWO, 3),
        (TWO, np.zeros((5, 3))),
        (TWO[0], ["corners"]),
        (np.zeros((5, 4)), ["corners"]),
        (np.full((5, 3), 0.5), ["corners"]),
        ([(1, 2)], ["corners"]),
        (np.array([["a", "b"]]), ["corners"]),
    ],
)
def test_what_cannot_be_points_is_listed(corners: Any, declared: Any) -> None:
    """A wrong name, form or image: nothing is drawn, and both values are listed."""
    item = {"corners": corners, "points": declared}
    assert (drawn(**item) == 100).all()
    rest = Shown({"image": IMAGE, "index": 0, **item}).rest()
    assert "corners " in rest
    assert "points " in rest


def test_few_points_lie_over_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name with many points, each is smaller."""
    radii: list[float] = []
    monkeypatch.setattr(Canvas, "disc", lambda self, x, y, radius, colour: radii.append(radius))
    many = np.random.default_rng(0).uniform(0, 150, (200, 2))
    drawn(few=TWO, many=many, points=["few", "many"])
    assert len(radii) == 2 * 202
    assert max(radii[:400:2]) < min(radii[400::2])
    assert max(radii[1:400:2]) < min(radii[401::2])


def test_the_legend_has_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """One name is the title, over the order of colours. Several have a mark each. What is hollow is explained."""
    written: list[str] = []
    text = Canvas.text

    def noted(self: Canvas, x: float, y: float, words: str, **options: Any) -> None:
        written.append(words)
        text(self, x, y, words, **options)

    monkeypatch.setattr(Canvas, "text", noted)
    contact_sheet([{"index": 0, "image": IMAGE, "corners": TWO, "points": "corners"}], "title")
    assert {"corners", "in this order"} <= set(written)
    assert not {"points", "occluded"} & set(written)

    written.clear()
    seen = np.column_stack([TWO, (1, 2)])
    items = [{"index": i, "image": IMAGE, name: seen, "points": name} for i, name in enumerate(("hands", "feet"))]
    contact_sheet(items, "title")
    assert {"points", "hands", "feet", "occluded"} <= set(written)
    assert "in this order" not in written
