"""Cameras and placing."""
