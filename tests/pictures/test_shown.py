"""Any item can be shown: what cannot be drawn is left out or listed, and is never an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asyncblend.pictures import contact_sheet
from asyncblend.pictures.box3d import box_lines
from asyncblend.pictures.canvas import text_width
from asyncblend.pictures.drawing import annotated
from asyncblend.pictures.shown import Shown
from asyncblend.pictures.tiles import tile

Scene = Callable[..., dict[str, Any]]
NOWHERE = (np.nan, np.inf, -np.inf, 1e20, -3e38)


def drawn(**values: Any) -> Any:
    """Return the annotated picture, on a grey image of 200 x 160."""
    shown = Shown({"image": np.full((160, 200, 3), 100, np.uint8), "index": 0, **values})
    return np.asarray(annotated(shown, 200, 160)).astype(int)


@pytest.mark.parametrize("nowhere", NOWHERE)
def test_a_point_that_is_nowhere_is_left_out(nowhere: float) -> None:
    """A point behind the camera is not drawn, and the next point keeps its colour."""
    points = np.array([(nowhere, 60.5), (50.5, 60.5)], np.float32)
    picture = drawn(xy=points)
    assert np.abs(picture[60, 50] - (0xFF, 0xB1, 0x3D)).max() < 24
    np.testing.assert_array_equal(picture[:, 100:], 100)
    np.testing.assert_array_equal(drawn(xy=points[:1]), 100)


@pytest.mark.parametrize("nowhere", NOWHERE)
def test_keypoints_and_boxes_that_are_nowhere_are_left_out(nowhere: float) -> None:
    """Bones to such keypoints are not drawn either, and an object without a box has no name on the image."""
    points = np.array([[(nowhere, 20, 2), (20, nowhere, 1), (150, 120, 2)]], np.float32)
    one = {"id": np.array([4]), "name": ["Cube"], "skeleton": [[1, 3], [2, 3]]}
    picture = drawn(**one, keypoints=points)
    assert (picture[110:130, 140:160] != 100).any()
    picture[110:130, 140:160] = 100
    np.testing.assert_array_equal(picture, 100)
    for place in range(4):
        box = np.array([[40, 50, 60, 70]], np.float32)
        box[0, place] = nowhere
        np.testing.assert_array_equal(drawn(**one, bbox=box), 100)


@pytest.mark.parametrize("nowhere", NOWHERE)
@pytest.mark.parametrize("name", ["bbox3d", "K", "world_to_camera"])
@pytest.mark.exhaustive
def test_edges_that_are_nowhere_are_left_out(nowhere: float, name: str, scene: Scene) -> None:
    """This holds for corners and for the camera."""
    item = scene(0)
    item[name] = np.array(item[name], np.float64)
    item[name][(0,) * item[name].ndim] = nowhere
    lines = [thing.lines for thing in Shown(item).things]
    assert np.isfinite(np.concatenate(lines)).all()
    contact_sheet([item], "title")


@pytest.mark.parametrize("wrong", [[[1.0], [1, 2]], "K", {"K": 1}, None, [10**400], 3])
@pytest.mark.parametrize("name", ["bbox3d", "K", "world_to_camera"])
def test_a_camera_of_another_form_is_listed(name: str, wrong: Any, scene: Scene) -> None:
    """A camera with another form, such as ragged lists, is listed and not used."""
    shown = Shown({**scene(0), name: wrong})
    assert not any(len(thing.lines) for thing in shown.things)
    assert f"{name} " in shown.rest()


@pytest.mark.parametrize("name", ["K", "world_to_camera"])
def test_a_camera_that_projects_nothing_is_none(name: str, scene: Scene) -> None:
    """A matrix without an inverse, such as that of a script that has not set it, is not used."""
    for wrong in (np.zeros_like(scene(0)[name]), np.ones_like(scene(0)[name])):
        shown = Shown({**scene(0), name: wrong})
        assert shown.view is None
        assert f"{name} " in shown.rest()


def test_a_table_of_mixed_classes(scene: Scene) -> None:
    """A class that is no whole number counts as none, and a table without ids is listed."""
    odd = ("cube", None, 2.5, [1], 2)
    table = [{"id": i, "class_id": number, "class_name": number} for i, number in enumerate(odd, 1)]
    item = {**scene(0), "instances": table}
    assert Shown(item).classes == {1: "ball", 2: "2"}
    contact_sheet([item], "title")
    for name in ("class_id", "class_name"):
        del item[name]
    assert Shown(item).classes == {2: "2"}
    assert "instances" in Shown({**item, "instances": [{"id": "a"}]}).rest()
    assert "class_id float64[5]" in Shown({**item, "class_id": np.array([1, np.nan, 2, 3, 4])}).rest()
    assert "id float64[5]" in Shown({**item, "id": np.full(5, np.nan)}).rest()
    contact_sheet([{**item, "id": np.full(5, np.nan)}], "title")


@pytest.mark.parametrize("form", [list, np.array, lambda pairs: {"": pairs}, lambda pairs: {"": np.array(pairs)}])
def test_a_skeleton_has_the_forms_that_the_export_takes(form: Any) -> None:
    """Arrays are drawn as lists are."""
    points = np.array([[(20, 20, 2), (180, 20, 2)]], np.float32)
    item = {"index": 0, "id": np.array([4]), "keypoints": points, "skeleton": form([[1, 2]])}
    assert Shown(item).things[0].skeleton == [(0, 1)]
    assert "skeleton" not in Shown(item).rest()


@pytest.mark.parametrize("wrong", [[[0, 1]], np.array([[0, 1]]), 3, [[1]], [[1, np.inf]], np.array(3)])
def test_a_skeleton_that_the_export_refuses_is_listed(wrong: Any) -> None:
    """The sheet and the export have the same rule."""
    item = {"index": 0, "id": np.array([4]), "keypoints": np.zeros((1, 2, 3)), "skeleton": wrong}
    assert Shown(item).things[0].skeleton == []
    assert "skeleton" in Shown(item).rest()


@pytest.mark.parametrize("said", [True, np.array(True), np.bool_(True), 1])
def test_an_orthographic_camera(said: Any, scene: Scene) -> None:
    """K is in pixels per unit. The depth moves nothing, so a box along the axes is a rectangle."""
    item = {**scene(0), "K": np.array([[10.0, 0, 80], [0, 20, 60], [0, 0, 1]]), "orthographic": said}
    shown = Shown(item)
    for thing, corners in zip(shown.things, item["bbox3d"], strict=True):
        expected = corners[:, :2] * (10, 20) + (80, 60)
        assert len(thing.lines) == 12
        ends = thing.lines.reshape(-1, 2)
        np.testing.assert_allclose(ends.min(axis=0), expected.min(axis=0), atol=1e-4)
        np.testing.assert_allclose(ends.max(axis=0), expected.max(axis=0), atol=1e-4)
    assert shown.rest() == ""
    perspective = Shown({**item, "orthographic": False}).things[0].lines
    np.testing.assert_allclose(perspective, box_lines(item["bbox3d"][0], item["K"], item["world_to_camera"]))
    assert np.abs(perspective - shown.things[0].lines).max() > 1


def test_odd_texts_and_params() -> None:
    """Names with line breaks and params of another type are shown."""
    item = {
        "index": 0,
        "id": np.array([4]),
        "name": ["two\nlines"],
        "bbox": np.array([[40.0, 50, 60, 70]]),
        "params": np.zeros(3),
        "word": np.array("abc"),
        "scalar": np.float32(2.5),
    }
    contact_sheet([item], "a title\nof two lines")
    assert Shown(item).rest() == "params float64[3], word 'abc', scalar 2.5"
    assert text_width("two\nlines", 13) == text_width("two?lines", 13)


def test_albedo_is_shown_as_blender_shows_it() -> None:
    """Albedo is encoded by the sRGB curve, which is straight near black. The values are from its definition."""
    linear = np.array([0, 0.001, 0.0031308, 0.01, 0.2158605, 1, 2, np.nan], np.float32)
    albedo = np.repeat(linear[None, :, None], 3, axis=2)
    picture, _ = tile(Shown({"index": 0, "albedo": albedo}), "albedo", {})
    expected = [0, 3, 10, 25, 128, 255, 255, 0]
    assert picture[0].tolist() == [[value] * 3 for value in expected]
    image = np.asarray(annotated(Shown({"image": albedo}), 8, 1))
    np.testing.assert_array_equal(image, picture)
