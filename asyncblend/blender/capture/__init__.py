"""Rendered pixels."""
