"""Blender's end of the wire."""
