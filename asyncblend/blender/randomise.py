"""bl.randomise: the random things that most scenes want, in a line each. The rest is Blender's own API.

    def sample(task: bl.Task) -> dict:
        bl.randomise.camera_on_shell(task.rng, cube, radius=(4, 9))
        bl.randomise.material(cube, task.rng)
        bl.randomise.light(lamp, task.rng, target=cube)
        bl.randomise.background("pictures", task.rng)
        return bl.render()

The result of each is a function of the generator `rng` alone, not of what was there before: with `task.rng`, samples
are reproducible. All numbers are drawn uniformly from ranges (lo, hi). Lengths are in Blender units, angles in radians.

Raises, in every function:
    ConfigError: An argument is wrong, or the object's place is not its own: keyframes, a driver or a constraint would
        put it back in the render. The message says what would be right.
    RuntimeError: Blender does not keep the transform of an object up to date, because it is disabled in viewports or
        not in the view layer.
"""

from __future__ import annotations

import colorsys
import math
import numbers
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .scene import backdrop
from .scene.animation import is_animated
from .scene.camera import Camera
from .scene.lens import frame_of
from .scene.placing import check_free, check_kept, facing, middle, move, turn, vector
from .scene.sky import light_by

if TYPE_CHECKING:
    from collections.abc import Iterable

_Array = npt.NDArray[np.float64]
_Range = tuple[float, float]

_RIGHT = math.pi / 2
_OWNER = "asyncblend_material_of"


def pose(
    obj: Any, rng: np.random.Generator, camera: Any = None, distance: _Range = (4, 12), margin: float = 0.1
) -> None:
    """Turn an object at random, uniformly over all rotations, and put its middle at a random place of the image.

    The middle is that of its bounding box, or the origin of an object without geometry. It is uniform over the image
    and over the distances; parts of the object may be outside the image. The scale stays.

    Args:
        obj: Any object. Its parents are taken into account.
        camera: A camera object or a `Camera`. None: the scene's.
        distance: From the camera, along its axis.
        margin: The part of the image's width and height at each edge that the middle is not in, in [0, 0.5).
    """
    import bpy
    from mathutils import Quaternion

    if not isinstance(margin, numbers.Real) or not 0 <= margin < 0.5:
        raise ConfigError(f"margin must be at least 0 and below 0.5 of the image, got {margin!r}")
    _check_object(obj)
    check_free(obj)
    far = _drawn(rng, distance, "distance", least=0)
    across = rng.uniform(margin, 1 - margin, 2)
    rotation = Quaternion(rng.normal(size=4).tolist()).normalized()  # a normal distribution prefers no direction

    frame = frame_of(bpy.context.scene.render)
    place = _camera(camera).unproject(across[None] * (frame.width, frame.height), far)[0]
    turn(obj, np.array(rotation.to_matrix(), dtype=np.float64))
    move(obj, np.zeros(3))  # so that rounding does not depend on where the object was
    move(obj, place - _place(obj))
    check_kept(obj, (0, 1, 2))


def light(
    obj: Any, rng: np.random.Generator, energy: _Range | None = None, radius: _Range = (3, 8), target: Any = (0, 0, 0)
) -> None:
    """Put a light at a random place above a target, shining at it, with a random energy.

    Directions are uniform over the upper half of the sphere. The energy is set in the light's data, which copies of the
    object may share.

    Args:
        obj: A light object.
        energy: Watts, or watts per square metre for a sun. None: (100, 1000), and (1, 5) for a sun.
        radius: Distance from the target.
        target: Three numbers in world space, or an object, for its middle.
    """
    _check_object(obj)
    if obj.type != "LIGHT":
        raise ConfigError(f"object {obj.name!r} is not a light but of type {obj.type}")
    check_free(obj)
    if is_animated(obj.data, "energy"):
        raise ConfigError(
            f"light {obj.data.name!r} has an animated or driven energy, which would replace the random one"
        )
    usual = (1.0, 5.0) if obj.data.type == "SUN" else (100.0, 1000.0)
    power = _drawn(rng, usual if energy is None else energy, "energy", least=0)
    offset = _on_shell(rng, radius, (0, _RIGHT))
    obj.data.energy = power
    move(obj, _place(target) + offset)
    turn(obj, facing(-offset, np.array([0.0, 0, 1])))
    check_kept(obj, (2,))  # around the direction in which it shines it may turn


def material(obj: Any, rng: np.random.Generator, roughness: _Range = (0, 1)) -> None:
    """Give an object a random colour, uniform in hue, and a random roughness.

    The first call gives the object a material of its own in all its slots; later calls change that one, so that memory
    does not grow. The slots are linked to the object, so other objects with the same mesh keep theirs. Saturation is
    from 0.5 to 1 and value from 0.2 to 1.

    Args:
        obj: An object that can have materials: a mesh, curve, text, surface or metaball.
        roughness: Of the Principled BSDF, within [0, 1].
    """
    _check_object(obj)
    if not hasattr(obj.data, "materials"):
        raise ConfigError(f"object {obj.name!r} of type {obj.type} cannot have a material")
    if obj.library is not None:
        raise ConfigError(
            f"object {obj.name!r} is linked from a library, so it cannot have a material of its own: make a library "
            f"override of it, or make it local"
        )
    rough = _drawn(rng, roughness, "roughness", least=0, most=1)
    hue, saturation, value = rng.uniform((0, 0.5, 0.2), (1, 1, 1))
    colour = (*colorsys.hsv_to_rgb(hue, saturation, value), 1.0)

    found = _own_material(obj)
    shader = next((node for node in found.node_tree.nodes if node.type == "BSDF_PRINCIPLED"), None)
    if shader is None:
        raise ConfigError(
            f"material {found.name!r}, which was made for {obj.name!r}, has no Principled BSDF any more: "
            "put one back, or remove the material"
        )
    shader.inputs["Base Color"].default_value = colour
    shader.inputs["Roughness"].default_value = rough
    found.diffuse_color, found.roughness = colour, rough  # what Workbench shows


def camera_on_shell(
    rng: np.random.Generator, target: Any, radius: _Range = (4, 12), elevation: _Range = (0, _RIGHT), camera: Any = None
) -> None:
    """Put a camera at a random place on a shell around a target, looking at it.

    The place is uniform over the shell's area between the two elevations.

    Args:
        target: Three numbers in world space, or an object, for its middle.
        radius: Distance from the target.
        elevation: Angle above the horizon, in radians within [-pi/2, pi/2].
        camera: A camera object or a `Camera`. None: the scene's.
    """
    offset = _on_shell(rng, radius, elevation)
    chosen, at = _camera(camera), _place(target)
    check_free(chosen.obj)
    move(chosen.obj, at + offset)
    chosen.look_at(at)
    check_kept(chosen.obj)


def background(folder: str | os.PathLike[str], rng: np.random.Generator) -> str:
    """Show a random picture of a folder behind everything, as the camera sees it.

    Only the camera sees it: light and reflections come from the world as it was. The picture fills the image, and is
    cut where its shape differs. Nodes for it are added to the scene's world; the world's other nodes are kept. Pictures
    stay in memory until newer ones need it (256 MiB in all). The folder is listed once, so pictures that are added
    later are not used. A view transform such as Filmic changes the picture too; Standard does not.

    Args:
        folder: With files of the kinds that Blender reads (PNG, JPEG, TIFF, WebP, BMP, TGA, OpenEXR, HDR). Folders in
            it are not searched.

    Returns:
        The path of the picture.

    Raises:
        ConfigError: There is no such folder, or no picture in it, or the picture cannot be read; or it would not be
            seen, because the film is transparent or the engine is Workbench.
    """
    import bpy

    path = _picture(folder, rng)
    backdrop.show(bpy.context.scene, path)
    return path


def sky(folder: str | os.PathLike[str], rng: np.random.Generator, strength: _Range = (0.7, 1.5)) -> str:
    """Surround the scene with a random picture of a folder, turned at random around the vertical axis, which lights it.

    The pictures show all directions in equirectangular projection; photographs with a high dynamic range (HDR, OpenEXR)
    give natural light. The picture takes the place of what the scene's world was, but not of a `background`, which the
    camera then sees in front of it. As for that, pictures stay in memory until newer ones need it.

    Args:
        folder: As for `background`.
        strength: What the picture's light is multiplied by.

    Returns:
        The path of the picture.

    Raises:
        ConfigError: There is no such folder, or no picture in it, or the picture cannot be read; or the engine is
            Workbench, which it does not light.
    """
    import bpy

    path = _picture(folder, rng)
    light_by(bpy.context.scene, path, float(rng.uniform(0, 2 * math.pi)), _drawn(rng, strength, "strength", least=0))
    return path


def _check_object(obj: Any) -> None:
    import bpy

    if not isinstance(obj, bpy.types.Object):
        raise ConfigError(f"an object is needed, such as bpy.data.objects['Cube']; got {obj!r}")


def _check_generator(rng: Any) -> None:
    if not isinstance(rng, np.random.Generator):
        raise ConfigError(
            f"rng must be a generator of numpy, such as task.rng or numpy.random.default_rng(7); got {rng!r}"
        )


def _picture(folder: Any, rng: np.random.Generator) -> str:
    _check_generator(rng)
    if not isinstance(folder, (str, os.PathLike)):
        raise ConfigError(f"folder must be the path of a folder with pictures; got {folder!r}")
    pictures = backdrop.pictures(os.path.abspath(os.fspath(folder)))
    return pictures[rng.integers(len(pictures))]


def _camera(camera: Any) -> Camera:
    return camera if isinstance(camera, Camera) else Camera(camera)


def _place(target: Any) -> _Array:
    import bpy

    if isinstance(target, bpy.types.Object):
        return middle(target, bpy.context.evaluated_depsgraph_get())  # updates the view layer
    return vector(target, "target")


def _drawn(rng: np.random.Generator, limits: Iterable[float], name: str, least: float, most: float = math.inf) -> float:
    low, high = _limits(limits, name, least, most)
    _check_generator(rng)
    return float(rng.uniform(low, high))


def _limits(limits: Iterable[float], name: str, least: float, most: float) -> _Range:
    try:
        low, high = (float(each) for each in limits)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (least <= low <= high <= most and math.isfinite(high)):
        upper = f" and at most {most:.4g}" if math.isfinite(most) else ""
        raise ConfigError(f"{name} must be (lo, hi), two numbers of at least {least:.4g}{upper}; got {limits!r}")
    return low, high


def _on_shell(rng: np.random.Generator, radius: Iterable[float], elevation: Iterable[float]) -> _Array:
    """Return a random vector from the middle of a shell to it.

    The area of a shell between two heights is proportional to their difference, so the height is drawn uniformly.
    """
    low, high = _limits(elevation, "elevation (in radians)", -_RIGHT, _RIGHT)
    length = _drawn(rng, radius, "radius", least=1e-6)
    up = rng.uniform(math.sin(low), math.sin(high))
    around = rng.uniform(0, 2 * math.pi)
    flat = math.sqrt(1 - up * up)
    return length * np.array([flat * math.cos(around), flat * math.sin(around), up])


def _own_material(obj: Any) -> Any:
    """Return the object's own material, and put it into all the object's slots. It is found by the object's name.

    A copy of the object has another name, so it gets another material. An object that is made anew for each sample gets
    that of its predecessor.
    """
    import bpy

    slots = obj.material_slots
    first = slots[0].material if len(slots) else None
    ours = (each for each in (first, *bpy.data.materials) if each is not None)
    found = next((each for each in ours if each.get(_OWNER) == obj.name), None)
    if found is None:
        found = bpy.data.materials.new(f"{obj.name} at random")
        if found.node_tree is None:  # later Blenders give each material nodes, and warn of this switch
            found.use_nodes = True
        found[_OWNER] = obj.name
    if not len(slots):
        obj.data.materials.append(None)
    for slot in slots:
        if slot.link != "OBJECT":
            slot.link = "OBJECT"
        if slot.material != found:
            slot.material = found
    return found
