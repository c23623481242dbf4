"""Images of any name: which values are pictures, how their values are shown, and where they are on the sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from asyncblend.pictures import contact, contact_sheet
from asyncblend.pictures.colours import NOTHING, colour_of, depth_picture, flow_picture
from asyncblend.pictures.drawing import annotated, drawn_picture
from asyncblend.pictures.images import pictures_in
from asyncblend.pictures.shown import Shown

SIZE = (24, 32)
GREY = np.full((*SIZE, 3), 100, np.uint8)
RNG = np.random.default_rng(1)


def picture_of(value: Any) -> Any:
    """Return the one picture of a value."""
    ((picture,), left_out) = (found := pictures_in({"any": value}))[0].values(), found[1]
    assert left_out == {"any": 0}
    assert picture.size == (value.shape[1], value.shape[0])
    return picture


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (GREY, GREY),
        (np.dstack([GREY, GREY[..., :1]]), np.dstack([GREY, GREY[..., :1]])),
        (GREY[..., 0], GREY),
        (GREY[..., :1], GREY),
        (GREY.astype(np.uint16) << 8, GREY),
        (GREY > 50, np.full_like(GREY, 255)),
        (GREY[..., 0] > 200, np.zeros_like(GREY)),
        (np.full((*SIZE, 3), 0.2158605, np.float32), np.full_like(GREY, 128)),
        (np.full(SIZE, 0.2158605, np.float64), np.full_like(GREY, 128)),
        (np.full((*SIZE, 3), 9.5, np.float16), np.full_like(GREY, 255)),
        (np.zeros(SIZE, np.uint8), np.zeros_like(GREY)),
    ],
    ids=["RGB", "RGBA", "grey", "one channel", "16 bits", "colour of bools", "mask", "linear", "grey linear",
         "bright", "black"],
)  # fmt: skip
def test_light(value: Any, shown: Any) -> None:
    """Bytes are shown as they are, bools in black and white, and floats as linear light; their size is noted."""
    picture = picture_of(value)
    np.testing.assert_array_equal(picture.pixels, shown)
    assert (picture.kind, picture.note) == ("light", "32 x 24")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32])
def test_small_whole_numbers_are_ids(dtype: Any) -> None:
    """Each has the colour of its number, as in the tile of `instance`, also in bytes, which would be black."""
    value = np.zeros(SIZE, dtype)
    value[4:], value[20:] = 3, 17
    picture = picture_of(value)
    assert (picture.kind, picture.note) == ("ids", "2 ids")
    for row, colour in ((0, NOTHING), (10, colour_of(3)), (22, colour_of(17))):
        assert tuple(picture.pixels[row, 5]) == colour


def test_other_numbers_are_measured() -> None:
    """The range is noted, and what is not finite has no colour. So have depths in millimetres and disparities."""
    value = np.linspace(2, 6, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    np.testing.assert_array_equal(picture_of(value).pixels, depth_picture(value))
    value[3, 4], value[3, 5] = np.inf, np.nan
    picture = picture_of(value)
    assert (picture.kind, picture.note) == ("values", "2 to 6")
    assert tuple(picture.pixels[3, 4]) == tuple(picture.pixels[3, 5]) == NOTHING
    assert picture_of(np.arange(768, dtype=np.uint16).reshape(SIZE)).note == "0 to 767"
    assert picture_of(np.full(SIZE, np.inf)).note == "no finite value"
    assert picture_of(np.full(SIZE, 7.5)).note == "7.5"


def test_vectors_and_flow() -> None:
    """Three floats with negative ones are directions or positions, and two are a flow."""
    value = np.zeros((*SIZE, 3), np.float32)
    value[:12], value[12:] = (1, 0, 0), (0, 0, -1)
    picture = picture_of(value)
    assert (picture.kind, picture.note) == ("vectors", "-1 to 1")
    assert picture.pixels[[0, 20], 0].tolist() == [[255, 128, 128], [128, 128, 0]]
    np.testing.assert_array_equal(picture_of(value * 4).pixels, picture.pixels)
    assert picture_of(value * 4).note == "-4 to 4"
    flow = RNG.normal(0, 3, (*SIZE, 2))
    flow[0, 0] = 0, 20
    picture = picture_of(flow)
    assert (picture.kind, picture.note) == ("flow", "up to 20")
    np.testing.assert_array_equal(picture.pixels, flow_picture(flow))


@pytest.mark.parametrize(
    "value",
    [np.eye(4), np.zeros((900, 3)), np.zeros((40, 8, 3)), np.zeros((20, 20, 2), int), np.zeros((20, 20, 3), int),
     np.zeros((20, 20), complex), np.zeros((15, 40), np.uint8), np.zeros(400), np.zeros((20, 0)), np.array("abc"),
     np.zeros((60, 40, 20)), np.zeros((0, 20, 20, 3)), np.zeros((2, 2, 20, 20, 3)), [], [GREY, 3], {"a": GREY, "b": [None]},
     [[[[[GREY]]]]], "text", None],
    ids=lambda value: str(getattr(value, "shape", value))[:20],
)  # fmt: skip
def test_what_is_no_picture_is_listed(value: Any) -> None:
    """Tables, boxes, features and what else is not a picture are not drawn."""
    assert pictures_in({"any": value}) == ({}, {})
    assert "any " in Shown({"any": value}).rest()


def test_lists_dicts_and_stacks() -> None:
    """Each picture in them has a name of its own."""
    small = GREY[:16, :20]
    masks = np.stack([GREY[..., 0] > 0] * 2)
    item = {
        "index": 0,
        "views": {"top": GREY, "sides": [small, GREY]},
        "clip": np.stack([small, small]),
        "masks": masks,
        "pair": (GREY, GREY),
    }
    pictures, left_out = pictures_in({name: item[name] for name in item if name != "index"})
    assert list(pictures) == [
        *("views.top", "views.sides[0]", "views.sides[1]", "clip[0]", "clip[1]"),
        *("masks[0]", "masks[1]", "pair[0]", "pair[1]"),
    ]
    assert set(left_out.values()) == {0}
    assert Shown(item).rest() == ""


def test_a_long_stack_leaves_room_for_the_others() -> None:
    """A sheet says how many pictures it does not show."""
    item = {"index": 0, "image": GREY, "clip": np.stack([GREY] * 40), "left": GREY, "right": GREY}
    shown = Shown(item)
    assert len(shown.pictures) == 24
    assert {"left", "right", "clip[0]", "clip[21]"} <= set(shown.pictures)
    assert shown.rest() == "18 more of clip"
    contact_sheet([item], "title")


def test_the_first_picture_stands_in_for_a_missing_image() -> None:
    """It gets the annotations, which are pixels of it however large it is; masks and depths are passed over."""
    mask = np.ones(SIZE, bool)
    left = np.full((900, 1300, 3), 0.2158605, np.float32)
    item = {
        "index": 0,
        "range": np.full(SIZE, 3.0),
        "mask": mask,
        "left": left,
        "right": GREY,
        "bbox": np.array([[130, 90, 650, 450]]),
    }
    shown = Shown(item)
    assert (shown.name, shown.size, list(shown.pictures)) == ("left", (1300, 900), ["range", "mask", "right"])
    picture = np.asarray(annotated(shown, 260, 180)).astype(int)
    assert np.abs(picture[60, 26] - colour_of(1)).max() < 24
    assert np.abs(picture[60, 100] - 128).max() <= 1
    assert shown.rest() == ""


def test_an_image_keeps_its_shape_in_its_tile() -> None:
    """It fills the width or the height of its place, and where it is transparent a chessboard is visible."""
    tall = np.zeros((320, 96, 4), np.uint8)
    tall[:160] = (10, 20, 30, 255)
    picture = drawn_picture(Shown({"image": GREY, "tall": tall}), "tall", 400, 160, [])
    assert picture.size == (48, 160)
    assert np.asarray(picture)[40, 20].tolist() == [10, 20, 30]
    assert {225, 245} == set(np.unique(np.asarray(picture)[100:]))
    assert drawn_picture(Shown({"image": GREY, "small": GREY}), "small", 320, 300, []).size == (320, 240)


def test_tiles_of_other_images_follow_the_labels() -> None:
    """In all rows of a sheet a name has the same place; a sample that lacks it leaves the place empty."""
    green = np.zeros((48, 64, 3), np.uint8)
    green[...] = (10, 200, 30)
    image = np.full((48, 64, 3), 90, np.uint8)
    first = {"index": 0, "image": image, "right": green, "depth": np.full((48, 64), 4.0, np.float32)}
    sheet = np.asarray(contact_sheet([first, {"index": 1, "image": image, "right": green}], "title"))
    layout = contact._layout((64, 48), 2)
    place = layout.tiles[1]
    assert layout.image.height + contact._CAPTION == layout.height
    for row in (0, 1):
        top = contact._MARGIN + contact._HEADING + row * (layout.height + contact._BLOCK_GAP) + place.top
        left = contact._MARGIN + place.left
        inside = sheet[top + 2 : top + place.height - 2, left + 2 : left + place.width - 2]
        assert (inside == (10, 200, 30)).all()


@given(
    st.dictionaries(
        st.sampled_from(["image", "depth", "xy", "points", "bbox", "left", "other"]),
        arrays.arrays(
            st.one_of(
                arrays.floating_dtypes(), arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), st.just(bool)
            ),
            st.one_of(
                st.tuples(st.just(16), st.integers(16, 20)), st.tuples(st.just(17), st.just(16), st.integers(1, 4))
            ),
        ),
    )
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_arrays_of_any_kind_can_be_shown(values: dict[str, Any]) -> None:
    """Whatever the names and the numbers are, there is a sheet, and no warning."""
    contact_sheet([{"index": 0, **values}], "title")
