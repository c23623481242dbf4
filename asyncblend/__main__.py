"""Runs the command line for `python -m asyncblend`."""

from .cli import main

main()
