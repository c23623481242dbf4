"""Annotated images and contact sheets: marks are where they should be, and any item can be drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncblend.errors import ConfigError
from asyncblend.pictures import contact, contact_sheet
from asyncblend.pictures.box3d import box_lines
from asyncblend.pictures.canvas import Canvas, fit_text, text_width
from asyncblend.pictures.colours import colour_of, depth_picture, id_picture
from asyncblend.pictures.drawing import _texts, annotated
from asyncblend.pictures.shown import LABELS, Shown
from asyncblend.pictures.tiles import tile

Scene = Callable[..., dict[str, Any]]


def drawn(item: dict[str, Any], scale: int = 1) -> Any:
    """Return the annotated image, H x W x 3 int."""
    shown = Shown(item)
    width, height = shown.size
    return np.asarray(annotated(shown, scale * width, scale * height)).astype(int)


def plain(**values: Any) -> dict[str, Any]:
    """Return an item with a grey image of 200 x 160 and the given values."""
    return {"image": np.full((160, 200, 3), 100, np.uint8), "index": 0, **values}


def near(colour: Any, other: Any) -> bool:
    return bool(np.abs(np.asarray(colour, int) - np.asarray(other, int)).max() < 24)


# -- on the image ------------------------------------------------------------------------------------------------


def test_a_box_is_drawn_along_its_edges_in_its_objects_colour() -> None:
    """The line of a box is on its edges, and nowhere else."""
    picture = drawn(plain(id=np.array([7]), bbox=np.array([[40, 50, 60, 70]], np.float32)))
    for x, y in ((40, 80), (99, 80), (70, 50), (70, 119)):
        assert near(picture[y, x], colour_of(7)), (x, y)
    for x, y in ((36, 80), (44, 80), (70, 85), (103, 80), (70, 123)):
        assert picture[y, x].tolist() == [100] * 3, (x, y)


@pytest.mark.parametrize("box", [(40, 50, 1, 1), (40, 50, 60, 1), (3839, 2159, 1, 1), (0, 0, 0.01, 0.01)])
def test_a_thin_box_on_a_large_image(box: tuple[float, ...]) -> None:
    """A box that is thinner than a pixel of the sheet is drawn, and no error."""
    image = np.full((2160, 3840, 3), 100, np.uint8)
    contact_sheet([{"image": image, "index": 0, "id": np.array([7]), "bbox": np.array([box], np.float32)}], "title")


def test_a_box_follows_the_scale() -> None:
    """On a picture of twice the size, the box is twice as large."""
    picture = drawn(plain(id=np.array([7]), bbox=np.array([[40, 50, 60, 70]], np.float32)), 2)
    assert near(picture[160, 80], colour_of(7))
    assert near(picture[160, 199], colour_of(7))


def test_keypoints_are_full_hollow_or_not_drawn() -> None:
    """Visibility 2 is drawn full, 1 hollow, and 0 not at all. An empty box is not drawn."""
    points = np.array([[(30.5, 40.5, 2), (90.5, 40.5, 1), (150.5, 40.5, 0)]], np.float32)
    item = plain(id=np.array([1]), bbox=np.zeros((1, 4), np.float32), keypoints=points)
    picture = drawn(item, 3)
    assert near(picture[121, 91], [255] * 3)
    assert picture[121, 271].tolist() == [100] * 3
    assert (picture[110:133, 260:283] != 100).any()
    assert (picture[:, 320:] == 100).all()


def test_a_skeleton_joins_keypoints_that_are_in_the_image() -> None:
    """Pairs count from 1, as in COCO. A pair with a keypoint outside the image is not drawn."""
    points = np.array([[(20, 20, 2), (180, 20, 2), (180, 140, 0)]], np.float32)
    item = plain(id=np.array([4]), bbox=np.zeros((1, 4), np.float32), keypoints=points, skeleton=[[1, 2], [2, 3]])
    picture = drawn(item)
    assert near(picture[20, 100], colour_of(4))
    assert (picture[40:] == 100).all()


@pytest.mark.parametrize(
    ("fraction", "truncated", "said"),
    [(0.66, True, " · 66% visible, cut"), (0.66, False, " · 66% visible"), (1, True, " · cut"), (1, False, "")],
)
def test_a_chip_says_what_its_share_is(fraction: float, truncated: bool, said: str) -> None:
    """The share is that of the visible part, so that nobody takes it for what is cut off."""
    box, name = np.array([[40, 50, 60, 70]], np.float32), {"name": ["Cube"], "class_name": ["cube"]}
    item = plain(
        id=np.array([7]), bbox=box, visible_fraction=np.array([fraction]), truncated=np.array([truncated]), **name
    )
    (thing,) = Shown(item).things
    assert _texts(thing, few=True)[0] == "Cube · cube" + said


def test_masks_are_tinted_within_and_outlined() -> None:
    """Only annotated objects have masks on the image: a floor has an id too."""
    ids = np.zeros((160, 200), np.int32)
    ids[20:60, 30:90], ids[100:, :] = 2, 3
    picture = drawn(plain(instance=ids, id=np.array([2], np.int32)))
    inside = picture[40, 60]
    expected = 100 + (np.array(colour_of(2)) - 100) * 72 / 255
    assert near(inside, expected)
    assert near(picture[20, 60], colour_of(2))
    assert near(picture[40, 89], colour_of(2))
    assert picture[40, 92].tolist() == [100] * 3
    assert (picture[100:] == 100).all()


def test_without_annotations_the_masks_of_classes_are_drawn() -> None:
    """Without annotations, objects with a class in the table of bl.render have masks; without classes, all have."""
    ids = np.zeros((160, 200), np.int32)
    ids[20:60, 30:90], ids[100:, :] = 1, 2
    table = [
        {"id": 1, "name": "Cube", "class_id": 3, "class_name": "cube"},
        {"id": 2, "name": "Floor", "class_id": 0, "class_name": ""},
    ]
    assert Shown(plain(instance=ids, instances=table)).ids == [1]
    assert Shown(plain(instance=ids, instances=table[1:])).ids == [2]
    assert Shown(plain(instance=ids)).ids == [1, 2]


def test_points_of_xy_are_drawn_in_their_order() -> None:
    """Each point has a colour of its own."""
    picture = drawn(plain(xy=np.array([(50.5, 60.5), (150.5, 60.5)], np.float32)))
    assert near(picture[60, 50], (0xFF, 0x5D, 0x5D))
    assert near(picture[60, 150], (0xFF, 0xB1, 0x3D))


@pytest.mark.parametrize("objects", [6, 40])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_names_do_not_cover_each_other(scene: Scene, objects: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are not cut off by the image either, and if there are few objects, each has its name."""
    chips: list[tuple[float, ...]] = []
    monkeypatch.setattr(Canvas, "chip", lambda self, *box: chips.append(box[:4]))
    item = scene(3, 640, 480, objects)
    drawn(item)
    assert len(chips) >= min(len([box for box in item["bbox"] if box[2]]), 15)
    for one, other in itertools.combinations(chips, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for left, top, right, bottom in chips:
        assert left >= 0
        assert top >= 0
        assert right <= 640
        assert bottom <= 480


def test_transparent_images_show_a_chessboard() -> None:
    """Opaque pixels keep their colour."""
    image = np.zeros((160, 200, 4), np.uint8)
    image[:80] = (10, 20, 30, 255)
    picture = drawn({"image": image})
    assert (picture[:80] == (10, 20, 30)).all()
    assert set(np.unique(picture[80:])) == {225, 245}


@pytest.mark.parametrize(
    "image",
    [
        np.full((16, 20), 128, np.uint8),
        np.full((16, 20, 1), 128, np.uint8),
        np.full((16, 20, 3), 0.2158605, np.float32),  # linear light
        np.full((16, 20), 0.2158605, np.float16),
    ],
    ids=["grey", "one channel", "linear", "linear grey"],
)
def test_other_kinds_of_images(image: Any) -> None:
    """Grey images and scene-linear floats are drawn in the right colours."""
    assert np.abs(drawn({"image": image}) - 128).max() <= 1


# -- boxes in space ----------------------------------------------------------------------------------------------

INTRINSICS = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])


def corners(centre: tuple[float, float, float]) -> Any:
    signs = [(-1, -1), (-1, 1), (1, 1), (1, -1)]
    return np.array(centre) + [(i, *jk) for i in (-1, 1) for jk in signs]


def test_a_box_before_the_camera_has_twelve_edges() -> None:
    """Each line joins the projections of two corners that differ along one axis."""
    world_to_camera = np.eye(4)
    world_to_camera[2, 3] = 10
    eight = corners((0.5, -0.25, 0))
    lines = box_lines(eight, INTRINSICS, world_to_camera)
    assert lines.shape == (12, 2, 2)
    places = (eight[:, :2] / (eight[:, 2:] + 10)) * 100 + (50, 40)
    expected = {
        frozenset((tuple(np.round(places[a], 6)), tuple(np.round(places[b], 6))))
        for a, b in itertools.combinations(range(8), 2)
        if np.count_nonzero(eight[a] != eight[b]) == 1
    }
    assert {frozenset(tuple(np.round(end, 6)) for end in line) for line in lines} == expected


def test_edges_behind_the_camera_are_cut_off() -> None:
    """A box around the camera loses its rear face, and edges end in front of the camera. A box behind it has none."""
    lines = box_lines(corners((0, 0, 0.5)), INTRINSICS, np.eye(4))
    assert len(lines) == 8
    assert np.isfinite(lines).all()
    assert len(box_lines(corners((0, 0, -5)), INTRINSICS, np.eye(4))) == 0


# -- sheets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "objects", "count"),
    [(128, 96, 4, 2), (1920, 240, 2, 1), (96, 320, 5, 2), (800, 100, 3, 1), (1, 1, 1, 1), (160, 120, 0, 3)],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_any_size_makes_a_sheet(scene: Scene, width: int, height: int, objects: int, count: int) -> None:
    """No sheet is wider than a page, or empty."""
    sheet = contact_sheet([scene(i, width, height, objects) for i in range(count)], "title")
    assert sheet.width <= 1700
    assert sheet.height <= 3000
    assert (np.asarray(sheet) != 255).any(axis=2).mean() > 0.05


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 33))
def test_pictures_of_a_block_do_not_overlap(width: int, height: int, tiles: int) -> None:
    """Pictures and captions do not overlap, are in the block, and keep their shape. No block is wider than a page."""
    layout = contact._layout((width, height), tiles)
    places = [layout.image, *layout.tiles]
    assert len(places) == 1 + tiles
    assert layout.width <= max(contact._MAX_BLOCK, layout.image.width)
    for place in places:
        assert place.left >= 0
        assert place.top >= contact._CAPTION
        assert place.left + place.width <= layout.width
        assert place.top + place.height <= layout.height
        assert place.width >= 1
        assert place.height >= 1
    for one, other in itertools.combinations(places, 2):
        beside = one.left + one.width <= other.left or other.left + other.width <= one.left
        above = (
            one.top + one.height <= other.top - contact._CAPTION
            or other.top + other.height <= one.top - contact._CAPTION
        )
        assert beside or above


def caption(text: str, width: int) -> Any:
    """Return the first line of a block of this width as a picture, with nothing but a text on its left."""
    canvas = Canvas(width, contact._CAPTION)
    canvas.text(0, contact._CAPTION / 2, text, size=contact._TEXT)
    return np.asarray(canvas.picture())


def test_a_step_of_an_episode_is_called_so() -> None:
    """The caption of a frame tells its step, and that of a whole sample tells none."""
    items = [{"index": 7, "image": np.full((160, 200, 3), 100, np.uint8), "depth": np.ones((160, 200), np.float32)}] * 2
    sheet = np.asarray(contact_sheet(items, "title", steps=[3, None]))
    apart = contact._layout((200, 160), 1).height + contact._BLOCK_GAP
    top = contact._MARGIN + contact._HEADING
    for block, text in enumerate(("sample 7, step 3", "sample 7")):
        line = sheet[top + block * apart :][: contact._CAPTION, contact._MARGIN :][:, :200]
        np.testing.assert_array_equal(line, caption(text, 200))


@pytest.mark.parametrize(
    ("name", "written"),
    [("flow_forward[12]", "flow_forward[12]"), ("a_very_long_name_of_a_flow[12]", "a_very_long_nam…[12]")],
)
def test_a_caption_keeps_its_name_and_its_number(name: str, written: str) -> None:
    """Where both have no room, what is to be said about a picture goes first, and the number in its name never."""
    canvas = Canvas(140, contact._CAPTION)
    contact._caption(canvas, contact._Place(0, contact._CAPTION, 140, 100), name, "up to 12.5 px")
    np.testing.assert_array_equal(np.asarray(canvas.picture()), caption(written, 140))


def test_each_label_has_its_tile(scene: Scene) -> None:
    """Images of 640 x 480 are not scaled, and the tiles have the colours of their ids and depths."""
    item = scene(1, 640, 480, 5)
    item = {name: item[name] for name in ("image", "index", "instance", "depth")}
    layout = contact._layout((640, 480), 2)
    sheet = np.asarray(contact_sheet([item], "title"))
    top = contact._MARGIN + contact._HEADING
    pictures = [
        sheet[top + p.top : top + p.top + p.height, contact._MARGIN + p.left :][:, : p.width] for p in layout.tiles
    ]
    for picture, full in zip(pictures, (id_picture(item["instance"]), depth_picture(item["depth"])), strict=True):
        rows = (np.arange(picture.shape[0]) + 0.5) / picture.shape[0] * 480
        columns = (np.arange(picture.shape[1]) + 0.5) / picture.shape[1] * 640
        expected = full[rows.astype(int)[:, None], columns.astype(int)].astype(int)
        assert (np.abs(picture - expected).max(axis=2) < 24).mean() > 0.95


def test_samples_share_their_scales(scene: Scene) -> None:
    """In all rows of a sheet, a colour is the same depth: a wall at 5 m differs from one at 10 m."""
    items = [{"index": i, "depth": np.full((96, 128), depth, np.float32)} for i, depth in enumerate((5.0, 10.0))]
    sheet = np.asarray(contact_sheet(items, "title")).reshape(-1, 3)
    for colour in depth_picture(np.array([[5.0, 10.0]]))[0]:
        assert (sheet == colour).all(axis=1).sum() > 10_000


def test_a_scene_at_rest_is_white() -> None:
    """Rounding errors are no motion."""
    item = {"index": 0, "flow_forward": np.full((96, 128, 2), 1e-4, np.float32)}
    picture, note = tile(Shown(item), "flow_forward", {})
    assert picture.min() > 250
    assert note == "no motion"


def test_each_flow_has_its_own_scale_and_says_it() -> None:
    """The longest vector of a flow is fully saturated."""
    flow = np.zeros((96, 128, 2), np.float32)
    flow[10:20, 10:20] = (12.25, 0)
    picture, note = tile(Shown({"index": 0, "flow_backward": flow}), "flow_backward", {})
    assert note == "up to 12.2 px"
    assert picture[15, 15].tolist() == [255, 0, 0]


def test_what_is_not_drawn_is_listed(scene: Scene) -> None:
    """Unknown names, and known names whose values have another form, are listed. What is drawn is not listed."""
    item = {
        **scene(0),
        "params": {"level": 2},
        "level": 0.25,
        "angles": np.zeros((3, 2)),
        "note": "hello",
        "scalar": np.float32(2.5),
    }
    assert Shown(item).rest() == ("params {'level': 2}, level 0.25, angles float64[3, 2], note 'hello', scalar 2.5")
    odd = {
        "index": 3,
        "id": 7,
        "name": "n",
        "bbox": np.zeros((2, 4)),
        "depth": np.zeros((4, 4), int),
        "xy": np.zeros(2),
        "image": np.zeros((2, 2, 2)),
        "instances": ["a"],
        "keypoints": np.zeros((3, 1, 3)),
        "visible_fraction": "none",
    }
    listed = Shown(odd).rest()
    for name in set(odd) - {"index", "bbox"}:
        assert f"{name} " in listed
    contact_sheet([odd, {"index": 4}], "title")


def test_labels_that_only_some_samples_have(scene: Scene) -> None:
    """A label that a sample lacks leaves its tile empty."""
    items = [scene(0), scene(1)]
    for name in LABELS:
        del items[1][name]
    one = contact_sheet(items[:1], "title")
    assert contact_sheet(items, "title").width == one.width


def test_a_sheet_of_nothing_is_an_error() -> None:
    """A sheet without samples is an error."""
    with pytest.raises(ConfigError, match="no sample"):
        contact_sheet([], "title")


# -- text --------------------------------------------------------------------------------------------------------


def test_text_is_cut_to_its_room() -> None:
    """Long text ends with dots, and short text stays."""
    assert fit_text("short", 13, 200) == "short"
    cut = fit_text("a very long name of an object", 13, 100)
    assert cut.endswith("…")
    assert 70 < text_width(cut, 13) <= 100


def test_letters_that_the_font_has_not() -> None:
    """Accents are dropped, and other scripts become question marks."""
    assert text_width("Würfel", 13) == text_width("Wurfel", 13)
    assert text_width("立方体", 13) == text_width("???", 13)


def test_a_legend_of_many_classes_fits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The legend says how many classes it leaves out, and writes nothing outside the sheet."""
    item = scene(1, 320, 240, 5)
    item["instances"] = [
        {"id": i, "name": f"o{i}", "class_id": i, "class_name": f"a class called {i}"} for i in range(1, 91)
    ]
    written: list[str] = []

    def noted(self: Canvas, x: float, y: float, text: str, **options: Any) -> None:
        written.append(text)
        beyond = 0 if options.get("anchor", "lm") != "lm" else text_width(text, options.get("size", 15))
        assert x + beyond <= self.width + 1, text

    monkeypatch.setattr(Canvas, "text", noted)
    contact_sheet([item], "title")
    assert "a class called 1" in written
    assert any(text.startswith("and ") and text.endswith(" more") for text in written)
