"""Blender processes: found, started, watched, restarted, stopped."""
