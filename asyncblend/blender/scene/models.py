"""Files with a mesh, as one object: the importers of each Blender, and what is kept of what they make."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .parts import joined, meshes_shown, show_as_rendered

if TYPE_CHECKING:
    from collections.abc import Iterator

_USD = (("wm.usd_import", ""),)
_READERS: dict[str, tuple[tuple[str, str], ...]] = {
    ".fbx": (("wm.fbx_import", ""), ("import_scene.fbx", "io_scene_fbx")),
    ".glb": (("import_scene.gltf", "io_scene_gltf2"),),
    ".gltf": (("import_scene.gltf", "io_scene_gltf2"),),
    ".obj": (("wm.obj_import", ""), ("import_scene.obj", "io_scene_obj")),
    ".ply": (("wm.ply_import", ""), ("import_mesh.ply", "io_mesh_ply")),
    ".stl": (("wm.stl_import", ""), ("import_mesh.stl", "io_mesh_stl")),
    **dict.fromkeys((".usd", ".usda", ".usdc", ".usdz"), _USD),
}
"""By suffix the operators that read such a file, the best one first, each with the add-on that brings it."""
_SUFFIXES = (".blend", *_READERS)
_WITHOUT_UNIT = (".blend", ".obj", ".ply", ".stl")
# What a mesh alone is wanted of. An importer takes those of these options that it knows.
_OPTIONS = {"import_cameras": False, "import_lights": False, "create_world_material": False, "use_anim": False}
# What importers take over from a file, though a scene has it already.
_SETTINGS = (("", "camera world frame_start frame_end"), ("render", "fps fps_base"), ("unit_settings", "scale_length"))


def model_files(path: str | os.PathLike[str]) -> list[str]:
    """Return the files with models at a path: itself, or all of a folder that `load_model` reads, sorted by name.

    Folders in the folder are left out, and so are hidden files, whose names begin with a dot.

    Raises:
        ConfigError: There is no such file or folder, the folder cannot be read, or there is no such file in it.
    """
    text = os.fspath(path)
    if not os.path.isdir(text):
        _checked(text)
        return [text]
    try:
        names = sorted(os.listdir(text))
    except OSError as error:
        raise ConfigError(f"cannot list the folder {text!r}: {error.strerror}") from None
    wanted = [name for name in names if _suffix(name) in _SUFFIXES and not name.startswith(".")]
    found = [path for name in wanted if os.path.isfile(path := os.path.join(text, name))]
    if not found:
        raise ConfigError(f"there is no model in the folder {text!r}: none of its files ends in {_known()}")
    return found


def load_model(
    path: str | os.PathLike[str], *, size: float | None = None, unit: float = 1.0, name: str | None = None
) -> Any:
    """Load a file with a mesh as one object of the current scene, with its origin in the middle of its bounding box.

    All meshes of the file become one, however many parts it has: with modifiers, poses and instances applied, and with
    their materials. Lights, cameras and animations are left out, and the scene keeps its frame rate, its range of
    frames, and what is selected. The object has no parents, is not turned, and has a scale of 1, so that the `pose` of
    `annotate` is a rotation and a translation. +z is up, as importers turn what they read. STL and PLY files do not say
    which axis is up, so theirs stay as they are: if it is y, turn the mesh by
    `obj.data.transform(Matrix.Rotation(math.pi / 2, 4, "X"))`, or save the model as GLB.

    Blender's own importers read the file: GLB, glTF, OBJ, PLY, STL, FBX, USD (also USDA, USDC and USDZ), where this
    Blender has an importer for it. Of a BLEND file all objects with a mesh are taken that renders show, with the
    modifiers and resolutions of renders, or those of one collection: "parts.blend/Collection/Mug". It must not be the
    file that is open.

    Args:
        path: The file.
        size: The length of the longest side of the bounding box, in metres, which are Blender units unless the scene has
            another unit scale. None: as in the file.
        unit: How many metres a unit of the file is: 0.001 for STL files in millimetres. It is for OBJ, PLY, STL and
            BLEND, whose own unit scale is not read. The others know their own unit, of which importers make metres: for
            them it is ignored.
        name: The name of the object. None: the file's name without the suffix, or the collection's.

    Returns:
        The object, of type MESH, with at least one material.

    Raises:
        ConfigError: There is no such file, or this Blender cannot read it; there is no mesh in it, or none with faces,
            or it has no extent; an argument is wrong. Nothing of the file stays in the scene then.
    """
    import bpy

    for what, value in (("size", size), ("unit", unit)):
        right = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if value is not None and not (right and 0 < value < math.inf):
            raise ConfigError(f"{what} must be a length in metres, more than 0; got {value!r}")
    file, collection = _checked(os.fspath(path))
    before, scene, kept = set(bpy.data.user_map()), bpy.context.scene, None
    units = scene.unit_settings
    metres = 1.0 if units.system == "NONE" else units.scale_length  # of a Blender unit
    with _keeping_settings(scene):
        units.scale_length = 1  # some importers heed it, some do not
        try:
            with _collecting(scene):
                (_append if _suffix(file) == ".blend" else _import)(file, collection)
                show_as_rendered(set(bpy.data.user_map()) - before)
                meshes = meshes_shown(file, set(bpy.data.objects) - before)
                made = joined(meshes, name or collection or os.path.splitext(os.path.basename(file))[0])
            unit = unit if _suffix(file) in _WITHOUT_UNIT else 1.0
            _normalise(made, file, None if size is None else size / metres, unit / metres)
            kept = made
        finally:
            _remove_new(before, kept)
    bpy.context.view_layer.update()  # else its `bound_box` and `dimensions` would be those of before
    return kept


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _known() -> str:
    return ", ".join(_SUFFIXES)


def _checked(path: str) -> tuple[str, str]:
    """Return the file, and the collection in it, or ""."""
    file, _, collection = path.partition("/Collection/") if ".blend/Collection/" in path else (path, "", "")
    if not os.path.isfile(file):
        where = "" if os.path.isabs(file) else f" (looked in {os.getcwd()})"
        raise ConfigError(f"there is no model {file!r}{where}")
    if _suffix(file) not in _SUFFIXES:
        raise ConfigError(f"the model {file!r} is of a kind that is not known; its name must end in {_known()}")
    return file, collection


@contextlib.contextmanager
def _keeping_settings(scene: Any) -> Iterator[None]:
    """Put back, after the `with` block, what importers change of a scene: its settings, and what is selected."""
    import bpy

    owners = [
        (scene if not path else getattr(scene, path), name) for path, names in _SETTINGS for name in names.split()
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name in owners]
    objects = bpy.context.view_layer.objects
    active, selected = objects.active, list(objects.selected)
    try:
        yield
    finally:
        for owner, name, value in before:
            if getattr(owner, name) != value:
                setattr(owner, name, value)
        objects.active = active
        for each in selected:
            each.select_set(True)


@contextlib.contextmanager
def _collecting(scene: Any) -> Iterator[None]:
    """Have a new collection that is not hidden take what importers make: hidden objects would not be evaluated."""
    import bpy

    layer = bpy.context.view_layer
    active, own = layer.active_layer_collection, bpy.data.collections.new("Import")
    scene.collection.children.link(own)
    layer.active_layer_collection = layer.layer_collection.children[own.name]
    try:
        yield
    finally:
        layer.active_layer_collection = active


def _import(file: str, _: str) -> None:
    operator = _operator(file)
    known = operator.get_rna_type().properties.keys()
    try:
        with _numpy_of_the_importers():
            operator(filepath=os.path.abspath(file), **{name: on for name, on in _OPTIONS.items() if name in known})
    except RuntimeError as error:
        raise _unreadable(file, error) from None


@contextlib.contextmanager
def _numpy_of_the_importers() -> Iterator[None]:
    """Have `np.bool` within the block: the glTF importer of Blender 3.4 uses it, which numpy 1.24 to 1.26 have not."""
    lacking = "bool" not in vars(np)
    if lacking:
        setattr(np, "bool", bool)  # noqa: B010
    try:
        yield
    finally:
        if lacking:
            delattr(np, "bool")


def _unreadable(file: str, error: Exception) -> ConfigError:
    """Return the error of a file that Blender does not read, with Blender's words, but not with an importer's trace."""
    import bpy

    lines = str(error).rpartition("Traceback (most recent call last):")[2].strip().splitlines()
    said = " ".join(line.strip() for line in lines if not line.startswith((" ", "Location:")))
    return ConfigError(f"Blender {bpy.app.version_string} cannot read the model {file!r}: {said[:300]}")


def _operator(file: str) -> Any:
    """Return this Blender's operator for such a file."""
    import addon_utils
    import bpy

    for path, addon in _READERS[_suffix(file)]:
        group, _, name = path.partition(".")
        found = getattr(getattr(bpy.ops, group), name)
        if not _exists(found) and addon:
            addon_utils.enable(addon)  # the user's own settings may have it off
        if _exists(found):
            return found
    kind, version = _suffix(file)[1:].upper(), bpy.app.version_string
    raise ConfigError(
        f"Blender {version} has no importer for {kind}, so it cannot read {file!r}: it was built without it, or its "
        'add-on is missing. Take another Blender (blender="bpy" or --blender bpy has all of them), or save the model as '
        "GLB or OBJ"
    )


def _exists(operator: Any) -> bool:
    """Whether Blender has the operator. An unknown one is found out only when it is used."""
    try:
        operator.get_rna_type()
    except (KeyError, AttributeError):
        return False
    return True


def _append(file: str, collection: str) -> None:
    import bpy

    if os.path.realpath(file) == os.path.realpath(bpy.data.filepath):  # Blender 3.4 would crash
        raise ConfigError(f"the model {file!r} is the open scene itself, from which Blender cannot load: save a copy")
    try:
        with bpy.data.libraries.load(os.path.abspath(file)) as (stored, wanted):
            if collection and collection not in stored.collections:
                names = ", ".join(map(repr, stored.collections)) or "none"
                raise ConfigError(f"there is no collection {collection!r} in {file!r}; its collections are: {names}")
            wanted.collections = [collection] if collection else stored.collections
            if not collection:
                wanted.objects = stored.objects
    except OSError as error:
        raise _unreadable(file, error) from None
    target = bpy.context.view_layer.active_layer_collection.collection
    if collection:
        wanted.collections[0].hide_render = False  # it is asked for by its name
        target.children.link(wanted.collections[0])
        return
    shown = _rendered(wanted.collections)
    for one in wanted.objects:
        if not one.users_collection or shown.intersection(one.users_collection):
            target.objects.link(one)


def _rendered(collections: list[Any]) -> set[Any]:
    """Return the collections that renders show: those that are not hidden, nor are all that they are in."""
    inner = {child for each in collections for child in each.children}
    found, left = set[Any](), [each for each in collections if each not in inner]
    while left:
        if not (each := left.pop()).hide_render:
            found.add(each)
            left += each.children
    return found


def _normalise(obj: Any, file: str, size: float | None, unit: float) -> None:
    """Give the mesh its size in Blender units, and put the middle of its bounding box at the object's origin."""
    from mathutils import Matrix

    points: npt.NDArray[np.float32] = np.empty(len(obj.data.vertices) * 3, np.float32)
    obj.data.vertices.foreach_get("co", points)
    points = points.reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ConfigError(f"the model {file!r} has coordinates that are not finite: repair it")
    low, high = points.min(axis=0).astype(float), points.max(axis=0).astype(float)
    longest = float((high - low).max())
    if longest == 0:
        raise ConfigError(f"the model {file!r} has no extent: all its points are at one place")
    scale = unit if size is None else size / longest
    obj.data.transform(Matrix.Scale(scale, 4) @ Matrix.Translation((-(low + high) / 2).tolist()))
    obj.data.update()


def _remove_new(before: set[Any], kept: Any) -> None:
    """Remove all that was added to the file but the object and what it uses."""
    import bpy

    own = set() if kept is None else {kept, kept.data}
    shared = (bpy.types.Material, bpy.types.Image, bpy.types.NodeTree, bpy.types.Texture, bpy.types.Library)
    new = set(bpy.data.user_map()) - before - own
    bpy.data.batch_remove([each for each in new if not isinstance(each, shared)])
    while unused := [each for each in set(bpy.data.user_map()) - before - own if not _is_used(each)]:
        bpy.data.batch_remove(unused)


def _is_used(block: Any) -> bool:
    import bpy

    # A library counts itself as a user. One is left of each BLEND file, though all was copied from it.
    return bool(block.users_id) if isinstance(block, bpy.types.Library) else block.users > 0
