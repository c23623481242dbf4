"""Labels of objects."""
