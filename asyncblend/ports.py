"""Ports on which asyncblend is looked at, all on the loopback device. Importing this costs nothing."""

HOST = "127.0.0.1"

VIEW = 9870
"""Of `dataset.view()`, if no other was chosen."""

PAGE = 9090
"""Of the web page of `asyncblend view --web`, if no other was chosen."""
