"""The parts of capture that need no Blender: the display table, and reading image files."""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from asyncblend.blender.capture import display
from asyncblend.blender.capture.channel_table import ChannelTable
from asyncblend.blender.capture.imagefile import parse_exr, parse_tiff


def table(**exposure: float) -> display.DisplayTable:
    """Return a table that shows v as round(255 v), clipped, and half of that for green."""
    bits = np.arange(1 << 19, dtype=np.uint32) << 13
    with np.errstate(invalid="ignore"):
        shown = np.nan_to_num(bits.view(np.float32).clip(0, 1) * 255).round()
    tables = np.stack([shown, shown // 2, shown]).astype(np.uint8)
    return display.DisplayTable(ChannelTable(tables), no_colours, **exposure)


def no_colours(colours: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    raise AssertionError(f"all colours are in the table, but {colours} were asked for")


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (301, 257)])
def test_table_turns_the_image_over_block_by_block(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    linear = np.random.default_rng(0).uniform(-0.2, 1.2, (*shape, 4)).astype(np.float32)
    linear[..., 3] = 1
    before = linear.copy()
    want = (linear[::-1, :, :3].clip(0, 1) * 255) / (1, 2, 1)
    for block in (1, 1000, 1 << 16):
        monkeypatch.setattr(display, "_BLOCK", block)
        image = table().apply(linear)
        assert image.shape == (*shape, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert np.abs(image - want).max() <= 1.01
    assert (linear == before).all()


def test_table_divides_alpha_out_for_rgba_only() -> None:
    linear = np.array([[[0.2, 0.2, 0.1, 0.5], [0.3, 0.3, 0.3, 0.0], [0.4, 0.4, 0.4, 1.0]]], np.float32)
    np.testing.assert_allclose(
        table().apply(linear, "RGBA")[0], [[102, 51, 51, 128], [76, 38, 76, 0], [102, 51, 102, 255]], atol=1
    )
    np.testing.assert_allclose(table().apply(linear)[0], [[51, 25, 25], [76, 38, 76], [102, 51, 102]], atol=1)


def test_exposure_is_in_stops() -> None:
    linear = np.full((2, 2, 4), 0.1, np.float32)
    np.testing.assert_allclose(table(exposure=2.0).apply(linear)[0, 0], [102, 51, 102], atol=1)
    np.testing.assert_allclose(table(exposure=-1.0).apply(linear)[0, 0], [13, 6, 13], atol=1)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30, -1.0, 1e-40])
def test_any_float_has_an_entry(value: float) -> None:
    linear = np.full((1, 1, 4), value, np.float32)
    assert table().apply(linear)[0, 0].tolist() in ([0, 0, 0], [255, 127, 255])


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_reads_tiff_in_strips(mode: str, rows: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, len(mode)), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", tiffinfo={278: rows})
    np.testing.assert_array_equal(parse_tiff(file.getvalue()), pixels)


@pytest.mark.parametrize("data", [b"", b"II*\0", b"no image at all", b"\x76\x2f\x31\x01\2\0\0\0chan"])
def test_what_is_no_image_is_an_error(data: bytes) -> None:
    with pytest.raises(RuntimeError, match="TIFF"):
        parse_tiff(data)
    with pytest.raises(RuntimeError, match="OpenEXR"):
        parse_exr(data)


def test_reads_exr_with_channels_of_several_types() -> None:
    """The file has half and float channels in order of name; the arrays have them as X, Y, Z and R, G, B, A."""
    width, height = 3, 2
    rng = np.random.default_rng(0)
    channels = {name: rng.random((height, width)).astype("<f4") for name in ("L.N.X", "L.N.Y", "L.N.Z")}
    channels |= {name: rng.random((height, width)).astype("<f2") for name in "ABGR"}
    names = sorted(channels)
    listing = b"".join(
        name.encode() + b"\0" + struct.pack("<iiii", 1 if len(name) == 1 else 2, 0, 1, 1) for name in names
    )
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    header = b"\x76\x2f\x31\x01\2\0\0\0"
    for name, kind, body in [
        (b"channels", b"chlist", listing + b"\0"),
        (b"compression", b"compression", b"\0"),
        (b"dataWindow", b"box2i", window),
    ]:
        header += name + b"\0" + kind + b"\0" + struct.pack("<i", len(body)) + body
    header += b"\0"
    lines = [b"".join(channels[name][y].tobytes() for name in names) for y in range(height)]
    first = len(header) + 8 * height
    table_of_lines = struct.pack("<2Q", first, first + 8 + len(lines[0]))
    data = header + table_of_lines + b"".join(struct.pack("<ii", y, len(line)) + line for y, line in enumerate(lines))

    found = parse_exr(data)
    assert set(found) == {"", "L.N"}
    np.testing.assert_array_equal(found["L.N"], np.stack([channels[f"L.N.{c}"] for c in "XYZ"], axis=2))
    np.testing.assert_array_equal(found[""], np.stack([channels[c] for c in "RGBA"], axis=2).astype(np.float32))
