"""The process of one target: `python -m benchmarks.fuzz.child TARGET ARGUMENTS`, whose arguments are libFuzzer's."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

__all__: list[str] = []


def _main(name: str, *arguments: str) -> None:
    # Only what is imported here is measured: our readers, and what they hand bytes to that is written in Python.
    with atheris.instrument_imports(include=["asyncblend", "tomllib", "tarfile", "numpy.lib", "PIL"]):
        from .targets import TARGETS

        target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
        atheris.Setup([sys.argv[0], *arguments], lambda data: target.run(data, Path(folder)))
        atheris.Fuzz()  # does not return


if __name__ == "__main__":
    _main(*sys.argv[1:])
