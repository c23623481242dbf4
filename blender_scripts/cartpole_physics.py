"""A pole on a cart, to be balanced, as rigid bodies of Blender: an environment for `asyncblend.gym`.

A slider holds the cart on its rail, a hinge holds the pole on the cart, and a motor drives the cart. All motion is
Blender's simulation; the script only says how fast the motor is to be, and reads where the bodies are.
"""

import argparse
import math

import bpy
import numpy as np
from cartpole_scene import make_scene
from mathutils import Vector

from asyncblend import blender as bl

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=480)
parser.add_argument("--height", type=int, default=320)
parser.add_argument("--samples", type=int, default=4, help="Cycles' samples a pixel")
parser.add_argument("--steps", type=int, default=500, help="the most steps of an episode")
args, _ = parser.parse_known_args()

FPS, EDGE, LEAN, LENGTH = 50, 2.4, 0.6, 1.2
PUSH = 10.0  # the largest acceleration of the cart, in metres a second squared


class CartPole:
    """An action is the acceleration of the cart, from -1 to 1. Each step is worth 1, also the one that ends it.

    An observation is the cart's position and velocity, and the pole's angle and angular velocity.
    """

    def __init__(self) -> None:
        self.action_space = {"Box": {"low": -1.0, "high": 1.0, "shape": (1,), "dtype": "float32"}}
        self.observation_space = {"Box": {"low": -math.inf, "high": math.inf, "shape": (4,), "dtype": "float32"}}
        self.render_fps = FPS

    def reset(self, task: bl.Task) -> dict:
        motor.motor_lin_target_velocity = 0
        scene.frame_set(1)  # it discards the simulation of the episode before
        place, angle = task.rng.uniform((-0.3, -0.1), (0.3, 0.1))
        cart.location.x = hinge.location.x = place
        pole.location = (place + LENGTH / 2 * math.sin(angle), 0, LENGTH / 2 * math.cos(angle))
        pole.rotation_euler.y = angle
        scene.frame_set(1)
        self.place, self.angle = measured()
        return {"observation": np.array((self.place, 0, self.angle, 0), np.float32)}

    def step(self, action: np.ndarray) -> dict:
        motor.motor_lin_target_velocity += PUSH * float(action[0]) / FPS
        scene.frame_set(scene.frame_current + 1)
        place, angle = measured()
        speeds = FPS * (place - self.place), FPS * (angle - self.angle)
        self.place, self.angle = place, angle
        return {
            "observation": np.array((place, speeds[0], angle, speeds[1]), np.float32),
            "reward": 1.0,
            "terminated": abs(place) > EDGE or abs(angle) > LEAN,
            "truncated": scene.frame_current > args.steps,
        }

    def render(self) -> np.ndarray:
        simulation.enabled = False  # else the render evaluates it again, which upsets it
        image = draw(self.place, self.angle)
        simulation.enabled = True
        return image


def measured() -> tuple:
    """Return the place of the cart and the angle of the pole."""
    upright = pole.matrix_world.to_3x3() @ Vector((0, 0, 1))
    return cart.matrix_world.translation.x, math.atan2(upright.x, upright.z)


# -- the bodies, which are simulated and not drawn ---------------------------------------------------------------


def body(name: str, kind: str, mass: float, size: tuple) -> "bpy.types.Object":
    """Return a new body. It touches no other: joints alone hold it."""
    bpy.ops.mesh.primitive_cube_add(size=1, scale=size)
    made = bpy.context.object
    made.name, made.hide_render = name, True
    bpy.ops.rigidbody.object_add(type=kind)
    made.rigid_body.mass, made.rigid_body.collision_shape = mass, "BOX"
    made.rigid_body.linear_damping = made.rigid_body.angular_damping = 0
    made.rigid_body.use_deactivation = False
    own = len(simulation.collection.objects)
    made.rigid_body.collision_collections = [number == own for number in range(20)]
    return made


def joint(kind: str, first: "bpy.types.Object", second: "bpy.types.Object", turn: float = 0) -> "bpy.types.Object":
    """Join two bodies at the origin, turned about the x axis, and return the empty that is the joint."""
    bpy.ops.object.empty_add(rotation=(turn, 0, 0))
    made = bpy.context.object
    made.name = kind.title()
    bpy.ops.rigidbody.constraint_add(type=kind)
    made.rigid_body_constraint.object1, made.rigid_body_constraint.object2 = first, second
    return made


scene = bpy.context.scene
draw = make_scene(args.width, args.height, args.samples, EDGE, LENGTH)
scene.render.fps = FPS
bpy.ops.rigidbody.world_add()
simulation = scene.rigidbody_world
simulation.point_cache.frame_end = args.steps + 1
rail = body("Rail body", "PASSIVE", 1.0, (2 * EDGE, 0.06, 0.06))
cart = body("Cart body", "ACTIVE", 1.0, (0.5, 0.32, 0.24))
pole = body("Pole body", "ACTIVE", 0.1, (0.07, 0.07, LENGTH))
joint("SLIDER", rail, cart)
hinge = joint("HINGE", cart, pole, -math.pi / 2)
motor = joint("MOTOR", cart, rail).rigid_body_constraint
motor.use_motor_lin, motor.motor_lin_max_impulse = True, 100.0

bl.serve(CartPole())
