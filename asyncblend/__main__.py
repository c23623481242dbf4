"""`python -m asyncblend` is the command line."""

from .cli import main

main()
