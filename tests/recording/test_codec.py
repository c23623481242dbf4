"""The codec: values that a script returned come back unchanged."""

from __future__ import annotations

import gzip
import io
import json
import math
import pickle
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from asyncblend.errors import ConfigError
from asyncblend.recording.checksums import Damaged
from asyncblend.recording.codec import Images, decode, encode
from asyncblend.stream.clips import Clip
from asyncblend.stream.frame import Frame
from asyncblend.wire import payload

PNG = Images()
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
NAMES = st.one_of(
    st.sampled_from(
        ["image", "image.png", "json", "Image", "a/b", "a.b", "a-b", "$file", "$", "", "_x", "..", "x" * 200]
    ),
    st.text(max_size=8),
)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
IMAGES = st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([1, 3, 4])).flatmap(
    lambda shape: hnp.arrays("uint8", shape)
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), ARRAYS, IMAGES)
VALUES = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)), max_leaves=8
)
SAMPLES = st.dictionaries(NAMES, VALUES, max_size=5)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type, dtype, shape and every bit. All NaNs are equal."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (one, math.copysign(1, one)) == (
            other,
            math.copysign(1, other),
        )
    return bool(one == other)


def travelled(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as a frame has them: after the wire's own encoding."""
    tree, *arrays = payload.encode_values(values)
    return payload.decode_values([tree, *(array.tobytes() for array in arrays)])


@given(values=SAMPLES, params=SAMPLES, index=st.integers(0, 2**62))
def test_what_a_frame_has_comes_back(values: dict[str, Any], params: dict[str, Any], index: int) -> None:
    """Values of all kinds come back, however nested and named, and their file names suit every tar and WebDataset."""
    values, params = travelled(values), travelled(params)
    files = encode(values, index=index, instance=7, params=params, images=PNG)
    assert len({name.lower() for name in files}) == len(files)
    assert all(re.fullmatch(r"json|[a-z0-9][a-z0-9_-]{0,64}\.(npy\.gz|png)", name) for name in files)
    sample = decode(files)
    assert (sample.index, sample.instance) == (index, 7)
    assert same(sample.returned, values)
    assert same(sample.params, params)
    assert same(dict(sample), {**values, "index": index})


@given(values=SAMPLES)
def test_arrays_that_come_back_are_ones_own(values: dict[str, Any]) -> None:
    """No two decoded arrays share memory, and each can be written to."""

    def arrays(value: Any) -> list[Any]:
        if isinstance(value, np.ndarray):
            return [value]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [array for item in inner for array in arrays(item)]

    sample = decode(encode(travelled(values), index=0, instance=0, params={}, images=PNG))
    found = arrays(sample.returned)
    assert all(array.flags.writeable for array in found)
    assert not any(np.shares_memory(a, b) for i, a in enumerate(found) for b in found[:i])


def test_a_sample_knows_the_files_of_its_values() -> None:
    """By the value's own name, in each copy, as long as it has the array that was read."""
    one, other = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)
    values = {"Image": one, "image": other, "deep": {"image": one}, "depth": np.ones((2, 2)), "name": "x"}
    sample = decode(encode(values, index=0, instance=0, params={"image": one}, images=PNG))
    for copied in (sample, pickle.loads(pickle.dumps(sample))):
        assert copied.file_of("Image") == ("image.png", sample.files["image.png"])
        assert copied.file_of("image") == ("image-2.png", sample.files["image-2.png"])
        assert copied.file_of("depth") == ("depth.npy.gz", sample.files["depth.npy.gz"])
        assert [copied.file_of(name) for name in ("deep", "name", "index", "missing")] == [None] * 4
        copied["image"] = copied["image"].copy()
        del copied["depth"]
        assert copied.file_of("image") is copied.file_of("depth") is None


def test_files_have_the_names_of_the_values() -> None:
    """Images are PNG files and other arrays gzipped npy files, named after their values, and the JSON maps values to files."""
    values = {
        "image": np.zeros((4, 5, 3), np.uint8),
        "mask": np.zeros((4, 5), np.uint8),
        "depth": np.full((4, 5), np.inf, np.float32),
        "deep": {"xy": [np.ones(2)]},
        "count": 3,
        "far": math.inf,
    }
    files = encode(values, index=12, instance=1, params={"level": 0.5, "xy": np.ones(2)}, images=PNG)
    assert sorted(files) == ["deep-xy-0.npy.gz", "depth.npy.gz", "image.png", "json", "mask.npy.gz", "params-xy.npy.gz"]
    assert files["image.png"].startswith(b"\x89PNG")
    about = json.loads(files["json"], parse_constant=pytest.fail)
    assert about.pop("files") == {name: f"{zlib.crc32(data):08x}" for name, data in files.items() if name != "json"}
    assert files["json"].endswith(b',"crc32":"%s"}' % about.pop("crc32").encode())
    assert about == {
        "index": 12,
        "instance": 1,
        "params": {"level": 0.5, "xy": {"$": "params-xy.npy.gz"}},
        "values": {
            "image": {"$": "image.png"},
            "mask": {"$": "mask.npy.gz"},
            "depth": {"$": "depth.npy.gz"},
            "deep": {"xy": [{"$": "deep-xy-0.npy.gz"}]},
            "count": 3,
            "far": {"$float": "inf"},
        },
    }


def test_the_frames_of_an_episode_come_back() -> None:
    """Each frame has the values that were batched, and a sample that is one frame has no steps."""
    frames: list[dict[str, Any]] = [
        {
            "image": np.full((2, 3, 3), i, np.uint8),
            "boxes": np.ones((i, 4)),
            "words": ["a"] * i,
            "deep": {"n": i, "s": None},
        }
        for i in range(3)
    ]
    clip = Clip([Frame(values, index=4, instance=0, step=i, last=i == 2) for i, values in enumerate(frames)], 1)
    files = encode(clip, index=4, instance=0, params={}, images=PNG, steps=clip.length)
    sample = decode(files)
    assert sample.steps == 3
    assert all(same(sample.frame(i), values) for i, values in enumerate(frames))
    single = decode(encode(frames[0], index=0, instance=0, params={}, images=PNG))
    assert (single.steps, single.frame(0)) == (1, single.returned)
    for wrong in (2, 4):
        with pytest.raises(Damaged, match=f"not all values have {wrong} steps"):
            decode(encode(clip, index=4, instance=0, params={}, images=PNG, steps=wrong))
    with pytest.raises(Damaged, match="its JSON cannot be read"):
        decode(encode({"level": 1}, index=4, instance=0, params={}, images=PNG, steps=2))


def test_jpeg_is_for_images_alone() -> None:
    """Only images of three channels whose name begins with image are JPEG. Others may be labels, and lose nothing."""
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 48, 3)).copy()
    labels = rng.integers(0, 256, (64, 48, 3), np.uint8)
    alpha = rng.integers(0, 256, (64, 48, 4), np.uint8)
    values = {"image": smooth, "image_left": smooth, "colours": labels, "image_alpha": alpha}
    files = encode(values, index=0, instance=0, params={}, images=Images("jpeg", 90))
    assert sorted(files) == ["colours.png", "image.jpg", "image_alpha.png", "image_left.jpg", "json"]
    sample = decode(files)
    assert same(sample["colours"], labels)
    assert same(sample["image_alpha"], alpha)
    assert np.abs(sample["image"].astype(int) - smooth).max() < 8
    for shape, file in (((1, 65_500, 3), "image.jpg"), ((1, 65_501, 3), "image.png"), ((65_501, 1, 3), "image.png")):
        long = {"image": np.zeros(shape, np.uint8)}
        files_of_long = encode(long, index=0, instance=0, params={}, images=Images("jpeg"))
        assert sorted(files_of_long) == [file, "json"]
        assert same(decode(files_of_long)["image"], long["image"])
    coarse = encode(values, index=0, instance=0, params={}, images=Images("jpeg", 5))
    assert len(coarse["image.jpg"]) < len(files["image.jpg"])


@pytest.mark.parametrize(
    ("format", "quality", "message"),
    [
        ("jpg", None, "image_format must be 'png' or 'jpeg'"),
        ("png", 90, "goes with image_format='jpeg'"),
        ("jpeg", 0, "quality must be a whole number, at least 1"),
        ("jpeg", 101, "at most 100"),
    ],
)
def test_wrong_formats_are_told(format: str, quality: int | None, message: str) -> None:
    """A wrong option raises before anything is written."""
    with pytest.raises(ConfigError, match=message):
        Images(format, quality)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("json", b"{", "JSON"),
        ("json", b"[]", "JSON"),
        ("json", b'{"index": 1, "instance": 0, "params": {}}', "there is no 'values'"),
        ("json", b'{"index": 1, "instance": 0, "params": {}, "values": {"x": {"$": "y.npy"}}}', "no 'y.npy'"),
        ("json", b'{"index": 1, "instance": 0, "params": {}, "values": {"x": {"$": 0}}}', "there is no 0"),
        ("json", b'{"index": 1, "instance": 0, "params": {}, "values": {"$": "x.npy.gz"}}', "no dicts"),
        ("json", b'{"index": 1, "instance": 0, "params": [], "values": {}}', "no dicts"),
        ("json", b'{"index": 1e999, "instance": 0, "params": {}, "values": {}}', "JSON"),
        ("json", b'{"index": 1, "instance": 0, "params": {}, "values": {"x": {"$float": "1"}}}', "JSON"),
        (
            "json",
            b'{"index": 1, "instance": 0, "params": {}, "values": {"x": ' + b"[" * 40 + b"]" * 40 + b"}}",
            "nested",
        ),
        pytest.param(
            "json",
            b'{"index": 1, "instance": 0, "params": {}, "values": {"x": [{"$": "x.npy.gz"}, {"$": "x.npy.gz"}]}}',
            "no 'x.npy.gz'",
            id="one-file-twice",  # else a small JSON could ask for any amount of memory
        ),
        ("x.npy.gz", b"", "x.npy.gz cannot be read"),
        ("x.npy.gz", b"\x93NUMPY\x01\x00", "x.npy.gz cannot be read"),
        # No time in them: these bytes are in the tests' names, which all processes of a run must agree on.
        ("x.npy.gz", gzip.compress(b"", mtime=0), "x.npy.gz cannot be read"),
        ("x.npy.gz", gzip.compress(b"\x93NUMPY\x01\x00", mtime=0), "x.npy.gz cannot be read"),
        ("image.png", b"\x89PNG\r\n\x1a\n", "image.png cannot be read"),
        ("image.png", b"GIF89a", "image.png cannot be read"),
    ],
)
def test_damaged_files_are_told(name: str, data: bytes, message: str) -> None:
    """The error names the file, and says what is wrong with it, also where no checksum tells that it was changed."""
    values = {"x": np.arange(3), "image": np.zeros((2, 2, 3), np.uint8)}
    files = {**encode(values, index=1, instance=0, params={}, images=PNG), name: data}
    with pytest.raises(Damaged, match=message):
        decode(files, checked=False)
    with pytest.raises(Damaged, match=r"JSON|checksum differs"):
        decode(files)


def test_arrays_cut_off_or_of_objects_are_refused() -> None:
    """An npy file must have as many bytes as its shape and dtype say, and nothing is unpickled."""
    files = encode({"x": np.arange(3)}, index=1, instance=0, params={}, images=PNG)
    packed, about = files["x.npy.gz"], json.loads(files["json"])
    del about["crc32"]
    plain = json.dumps({**about, "values": {"x": {"$": "x.npy"}}}).encode()  # as before format 4
    npy = gzip.decompress(packed)
    assert same(decode({"json": plain, "x.npy": npy}, checked=False).returned, {"x": np.arange(3)})
    for wrong in (b"", npy[:-1], npy + b"\0", npy.replace(b"<i8", b"|O "), npy.replace(b"(3,)", b"(4,)")):
        with pytest.raises(Damaged, match=r"x\.npy cannot be read"):
            decode({"json": plain, "x.npy": wrong}, checked=False)
        with pytest.raises(Damaged, match=r"x\.npy\.gz cannot be read"):
            decode({**files, "x.npy.gz": gzip.compress(wrong)}, checked=False)
    for wrong in (packed[:-1], packed + b"\0", packed[:-4] + b"\xff\xff\xff\xff", packed[:20] + b"\0" + packed[21:]):
        with pytest.raises(Damaged, match=r"x\.npy\.gz cannot be read"):
            decode({**files, "x.npy.gz": wrong}, checked=False)


def test_labels_of_pixels_shrink() -> None:
    """Depth, normals and ids of a scene take a fraction of their size in memory, and each comes back to the bit."""
    y, x = np.mgrid[-1:1:240j, -1:1:320j].astype(np.float32)
    height = np.sqrt(np.clip(1 - 2 * (x**2 + y**2), 0, None))
    ball = height > 0
    values = {
        "depth": np.where(ball, 5 - height, np.inf).astype(np.float32),
        "normal": np.stack([np.where(ball, part, 0) for part in (x, y, height)], axis=2),
        "instance": ball.astype(np.int32),
        "clip": np.repeat(ball[None, ..., None], 3, axis=0).astype(np.uint8),
    }
    files = encode(values, index=0, instance=0, params={}, images=PNG)
    assert same(decode(files).returned, values)
    assert sum(map(len, files.values())) < sum(array.nbytes for array in values.values()) / 2
    assert len(files["instance.npy.gz"]) < values["instance"].nbytes / 50


@pytest.mark.parametrize(
    ("width", "height", "mode", "message"),
    [
        (9000, 9000, "RGB", "9000 x 9000 pixels of mode RGB, which is never written"),
        (8192, 8192, "RGB", "8192 x 8192 pixels cannot be in"),
        (65_500, 1000, "RGBA", "65500 x 1000 pixels cannot be in"),
        (2, 2, "L", "mode L, which is never written"),
        (2, 2, "P", "mode P, which is never written"),
        (2, 2, "I;16", "mode I;16, which is never written"),
    ],
)
def test_an_image_that_is_never_written_is_refused(width: int, height: int, mode: str, message: str) -> None:
    """It is refused by its header, before anything is allocated: a small file cannot ask for much memory."""
    buffer = io.BytesIO()
    Image.new(mode, (2, 2)).save(buffer, "PNG")
    png = bytearray(buffer.getvalue())
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    files = encode({"image": np.zeros((2, 2, 3), np.uint8)}, index=1, instance=0, params={}, images=PNG)
    with pytest.raises(Damaged, match=message):
        decode({**files, "image.png": bytes(png)}, checked=False)


@pytest.mark.parametrize("images", [PNG, Images("jpeg", 100)])
@pytest.mark.parametrize("channels", [3, 4])
def test_the_smallest_images_are_read(images: Images, channels: int) -> None:
    """Large images of one colour, whose files are as small as they can be, come back."""
    image = np.zeros((2048, 2048, channels), np.uint8)
    files = encode({"image": image}, index=1, instance=0, params={}, images=images)
    assert max(map(len, files.values())) < image.nbytes / 100
    assert same(decode(files)["image"], image)
