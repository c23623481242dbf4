"""From Blender's sockets to the consumer: hub, queue, frames, statistics, and BlenderStream over them."""
