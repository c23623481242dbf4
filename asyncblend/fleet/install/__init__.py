"""What Blender lacks."""
