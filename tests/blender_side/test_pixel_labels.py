"""The arithmetic of labels, without Blender, is checked to the bit against plain numpy on whole images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from asyncblend.blender.capture.pixel_labels import pixel_labels, semantic

SIZES = [(1, 1), (3, 5), (480, 641), (1, 70_000), (70_000, 1), (0, 4), (4, 0)]
LABELS = ("depth", "distance", "normal", "normal_camera", "flow_forward", "flow_backward")
FAR = 1e10


class _Camera:
    """It turns about all axes. Its pixels are oblong, and the principal point is not in the image's centre."""

    K = np.array([[500.0, 0, 310.5], [0, 350.0, 260.25], [0, 0, 1]])

    def __init__(self, kind: str = "PERSP") -> None:
        self.obj = SimpleNamespace(data=SimpleNamespace(type=kind))
        self.world_to_camera = np.eye(4)
        self.world_to_camera[:3, :3] = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]


def made_up(size: tuple[int, int], *, upside_down: bool) -> dict[str, npt.NDArray[np.float32]]:
    """Passes with background of both kinds, also where normals and vectors are not 0, as at edges."""
    rng = np.random.default_rng(3)

    def values(channels: int) -> npt.NDArray[np.float32]:
        found = rng.normal(size=(*size, channels)).astype(np.float32)
        return found[::-1] if upside_down else found

    passes = {"depth": abs(values(1)) + np.float32(0.1), "normal": values(3), "vector": values(4)}
    for share, depth in ((0.3, FAR), (0.1, 0)):
        passes["depth"][rng.random(size) < share] = depth
    passes["normal"][rng.random(size) < 0.1] = 0
    passes["vector"][rng.random(size) < 0.1] = 0
    return passes


def expected(passes: dict[str, npt.NDArray[np.float32]], camera: _Camera) -> dict[str, npt.NDArray[np.float32]]:
    """The same labels by formulas for whole images, in float32 and in a given order of operations."""
    z = passes["depth"][..., 0]
    height, width = z.shape
    background = (z >= FAR) | (z <= 0)
    depth = np.where(background, np.float32(np.inf), z)
    K = camera.K
    x = ((np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]).astype(np.float32)
    y = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]).astype(np.float32)
    rays = np.sqrt(x * x + np.float32(1) + (y * y)[:, None])
    a, b, c = np.moveaxis(passes["normal"], 2, 0)
    length = np.sqrt(np.maximum(a * a + b * b + c * c, np.float32(1e-30)))
    normal = np.where(background[..., None], np.float32(0), passes["normal"] / length[..., None])
    a, b, c = np.moveaxis(normal, 2, 0)
    turned = [a * row[0] + b * row[1] + c * row[2] for row in camera.world_to_camera[:3, :3].astype(np.float32)]
    flow = np.where(background[..., None], np.float32(0), passes["vector"])
    return {
        "depth": depth,
        "distance": rays * depth if camera.obj.data.type == "PERSP" else depth,
        "normal": normal,
        "normal_camera": np.stack(turned, axis=2),
        "flow_forward": flow[..., 2:] * np.array([-1, 1], np.float32),
        "flow_backward": flow[..., :2] * np.array([1, -1], np.float32),
    }


@pytest.mark.parametrize("upside_down", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("size", SIZES)
def test_labels_are_those_of_plain_formulas(size: tuple[int, int], upside_down: bool) -> None:
    """Also for images of several blocks and of none, and for passes that are turned upside down, as those in memory."""
    passes, camera = made_up(size, upside_down=upside_down), _Camera()
    before = {name: array.copy() for name, array in passes.items()}
    found = pixel_labels(LABELS, passes, FAR, camera)  # type: ignore[arg-type]
    right = expected(before, camera)
    assert set(found) == set(LABELS)
    for name, array in found.items():
        assert array.dtype == np.float32, name
        assert array.flags.c_contiguous, name
        assert array.flags.writeable, name
        if name == "normal_camera":  # its sums may be fused with the products, where the processor has that
            np.testing.assert_allclose(array, right[name], atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(array, right[name], err_msg=name)
    for name, array in passes.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("name", LABELS)
def test_a_label_alone_is_the_same_as_among_others(name: str) -> None:
    """And needs no other passes than its own."""
    passes = made_up((30, 40), upside_down=True)
    together = pixel_labels(LABELS, passes, FAR, _Camera())  # type: ignore[arg-type]
    used: dict[str, Any] = {"dist": (), "dept": (), "norm": ("normal",), "flow": ("vector",)}
    own = {key: passes[key] for key in ("depth", *used[name[:4]])}
    alone = pixel_labels(["instance", name, "albedo"], own, FAR, _Camera())  # type: ignore[arg-type]
    assert list(alone) == [name]
    np.testing.assert_array_equal(alone[name], together[name])


def test_normals_have_the_length_1() -> None:
    """Those of length 0 stay 0, and so does the background."""
    passes = made_up((48, 64), upside_down=True)
    found = pixel_labels(LABELS, passes, FAR, _Camera())  # type: ignore[arg-type]
    shown = np.isfinite(found["depth"]) & passes["normal"].any(axis=2)
    for name in ("normal", "normal_camera"):
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=2), shown, atol=1e-6)


def test_a_ray_is_as_long_as_the_geometry_says() -> None:
    passes, camera = made_up((480, 640), upside_down=True), _Camera()
    found = pixel_labels(["depth", "distance"], passes, FAR, camera)  # type: ignore[arg-type]
    x, y = np.meshgrid(np.arange(640) + 0.5, np.arange(480) + 0.5)
    rays = np.stack([x, y, np.ones_like(x)], axis=2) @ np.linalg.inv(camera.K).T
    np.testing.assert_allclose(found["distance"], np.linalg.norm(rays, axis=2) * found["depth"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["ORTHO", "PANO"])
def test_without_perspective_the_distance_is_the_depth(kind: str) -> None:
    """It is an array of its own."""
    found = pixel_labels(["distance", "depth"], made_up((3, 5), upside_down=True), FAR, _Camera(kind))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found["distance"], found["depth"])
    assert not np.shares_memory(found["distance"], found["depth"])


def test_flow_has_its_signs_from_the_vector_pass() -> None:
    """In that pass y points up, and the next frame is subtracted from this one. The background does not flow."""
    vector = np.array([[[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]], np.float32)
    depth = np.array([[[2], [1e10], [0]]], np.float32)
    names = ("flow_forward", "flow_backward", "depth")
    found = pixel_labels(names, {"vector": vector, "depth": depth}, 1e10, _Camera())  # type: ignore[arg-type]
    assert found["flow_forward"].tolist() == [[[-3, 4], [0, 0], [0, 0]]]
    assert found["flow_backward"].tolist() == [[[1, -2], [0, 0], [0, 0]]]
    assert found["depth"].tolist() == [[2, float("inf"), float("inf")]]


def test_labels_of_other_passes_are_left_out() -> None:
    assert pixel_labels(["instance", "albedo"], {}, FAR, _Camera()) == {}  # type: ignore[arg-type]


def test_classes_are_looked_up_by_id() -> None:
    ids = np.array([[0, 2], [1, 2]], np.int32)
    found = semantic(ids, [{"class_id": 7}, {"class_id": 2**31 - 1}])
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 2**31 - 1], [7, 2**31 - 1]]
