"""The models of a BOP dataset: a mesh for each class, in millimetres."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError

Array = np.ndarray[Any, Any]

_SAME = 1e-3  # by how much sizes may differ, as a share, and still be one
_MOST_PAIRS = 4096  # vertices of which all pairs are compared for the diameter


class Models:
    """The models of the classes, collected from one sample after another, and the sizes of the objects.

    A sample's "models" are the meshes of `bl.mesh_of` by class name. Each class's first one counts, so a script may return
    large ones with sample 0 alone.
    """

    def __init__(self) -> None:
        self._meshes: dict[str, Mapping[str, Array]] = {}
        self._names: dict[int, str] = {}
        self._scales: dict[int, tuple[Array, Array, Array]] = {}  # by class the first one, the least and the largest

    def add(self, item: Mapping[str, Any]) -> None:
        """Keep the models of a sample that are new. Raises ConfigError if they are not as `bl.mesh_of` gives them."""
        given = item.get("models")
        meshes: Any = given if isinstance(given, Mapping) else {} if given is None else {"": None}
        for name, mesh in meshes.items():
            if not _is_mesh(mesh):
                raise ConfigError(
                    f"sample {item['index']}: 'models' is no dict of meshes by class name, such as "
                    f'{{"cube": bl.mesh_of(cube)}}; got {mesh if name else given!r:.80}'
                )
            self._meshes.setdefault(name, mesh)

    def note_scale(self, class_id: int, name: str, scale: Array) -> None:
        """Remember the scale of an object, x y z.

        Raises:
            ConfigError: Its class has a model, but other objects of it have another scale.
        """
        self._names.setdefault(class_id, name)
        first, low, high = self._scales.get(class_id, (scale, scale, scale))
        self._scales[class_id] = first, np.minimum(low, scale), np.maximum(high, scale)
        if name in self._meshes:  # now, and not when all have been rendered
            self._has_several(class_id)

    def write(self, folder: Path) -> list[str]:
        """Write PLY files and models_info.json, if there are models. Returns what the user should know.

        Raises:
            ConfigError: A class has a model, but its objects come in several sizes.
        """
        infos: dict[str, Any] = {}
        missing: list[str] = []
        varying: list[str] = []
        for class_id, (first, _, _) in sorted(self._scales.items()):
            name, several = self._names[class_id], self._has_several(class_id)
            mesh = self._meshes.get(name)
            if mesh is None:
                (varying if several else missing).append(name or f"class {class_id}")
                continue
            folder.mkdir(exist_ok=True)
            vertices = np.asarray(mesh["vertices"], np.float64) * first * 1000
            faces = np.asarray(mesh["faces"])[:, :: 1 if first.prod() > 0 else -1]  # a mirrored one is inside out
            _write_ply(folder / f"obj_{class_id:06d}.ply", vertices, faces)
            infos[str(class_id)] = _info(vertices)
        if infos:
            (folder / "models_info.json").write_text(json.dumps(infos, indent=2) + "\n")
        notes = []
        if missing:
            advice = f'return "models": {{{missing[0]!r}: bl.mesh_of(obj), ...}} from the script to have models/'
            advice += "; `model.py --bop` has them in sample 0 alone, so export that one, too"
            notes.append(f"no model was given of {', '.join(missing)}: {advice}")
        if varying:
            notes.append(f"objects of one class differ in size, which no model can: {', '.join(varying)}")
        return notes

    def _has_several(self, class_id: int) -> bool:
        """Return whether objects of a class have several sizes. Raises ConfigError if it has a model."""
        name, (_, low, high) = self._names[class_id], self._scales[class_id]
        several = bool((high - low > _SAME * abs(high).max()).any())
        if several and name in self._meshes:
            raise ConfigError(
                f"objects of class {class_id}, {name!r}, are scaled by {low.min():.4g} to {high.max():.4g}, but "
                f"BOP has one model for each class: give all of them one scale, or leave its model out of 'models'"
            )
        return several


def rigid(item: Mapping[str, Any], row: int) -> tuple[Array, Array, Array]:
    """Return the rotation, 3 x 3, translation and scale, x y z, of an object's "pose". A mirrored one has x below 0.

    Raises ConfigError if the pose has a shear or a scale of 0, or is not finite.
    """
    matrix = item["pose"][row].astype(np.float64)
    scale = np.linalg.norm(matrix[:3, :3], axis=0)
    if np.linalg.det(matrix[:3, :3]) < 0:
        scale[0] = -scale[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        rotation = matrix[:3, :3] / scale
    if not np.isfinite(matrix).all() or not abs(rotation.T @ rotation - np.eye(3)).max() < 1e-3:
        raise ConfigError(
            f"sample {item['index']}: the 'pose' of object {int(item['id'][row])} is no rotation, translation and scale; "
            f"a parent with a scale of its own shears what is turned in it: apply that scale in Blender"
        )
    u, _, v = np.linalg.svd(rotation)  # the nearest rotation, since float32 is not exact
    return u @ v, matrix[:3, 3], scale


def _is_mesh(mesh: Any) -> bool:
    if not isinstance(mesh, Mapping) or not {"vertices", "faces"} <= mesh.keys():
        return False
    vertices, faces = mesh["vertices"], mesh["faces"]
    shapes = all(
        isinstance(array, np.ndarray) and array.ndim == 2 and array.shape[1] == 3 for array in (vertices, faces)
    )
    whole = shapes and vertices.dtype.kind == "f" and faces.dtype.kind in "iu" and len(vertices) > 0
    return bool(whole and np.isfinite(vertices).all() and (faces >= 0).all() and (faces < len(vertices)).all())


def _write_ply(path: Path, vertices: Array, faces: Array) -> None:
    """Write a mesh as text, with a normal at each vertex, as BOP's own models are."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(b - a, c - a))  # larger faces count more
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    floats = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    with open(path, "w", encoding="ascii") as file:
        file.write(f"ply\nformat ascii 1.0\ncomment millimetres\nelement vertex {len(vertices)}\n{floats}")
        file.write(f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n")
        np.savetxt(file, np.hstack([vertices, normals]), fmt="%.6g")
        np.savetxt(file, np.insert(faces, 0, 3, axis=1), fmt="%d")


def _info(vertices: Array) -> dict[str, float]:
    low, size = vertices.min(axis=0), np.ptp(vertices, axis=0)
    info = {"diameter": _diameter(vertices)}
    for what, values in (("min", low), ("size", size)):
        info |= {f"{what}_{axis}": float(value) for axis, value in zip("xyz", values, strict=True)}
    return info


def _diameter(vertices: Array) -> float:
    """Return the largest distance of two vertices; for a mesh of more than some thousand, to within 0.1 percent."""
    if len(vertices) > _MOST_PAIRS:  # the outermost vertices in directions evenly spread over half a sphere
        turns, heights = np.arange(_MOST_PAIRS // 2), (np.arange(_MOST_PAIRS // 2) + 0.5) / (_MOST_PAIRS // 2)
        round_, angle = np.sqrt(1 - heights**2), turns * np.pi * (3 - np.sqrt(5))
        directions = np.stack([round_ * np.cos(angle), round_ * np.sin(angle), heights])
        ends = [end for part in np.array_split(directions, 64, axis=1) for along in [vertices @ part]
                for end in (along.argmin(axis=0), along.argmax(axis=0))]  # fmt: skip
        vertices = vertices[np.unique(np.concatenate(ends))]
    return float(max(np.linalg.norm(vertices[i:] - vertices[i], axis=1).max() for i in range(len(vertices))))
