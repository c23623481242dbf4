"""Leash: runs before rerun's program, in its process: the kernel then kills that program when its parent is killed.

    python leash.py PARENT PROGRAM ARGUMENT ...

A file to run, not to import, so that it starts without our packages. Where there is no Linux, it only starts the program.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program that the arguments name."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it was killed before the kernel knew
            sys.exit(1)
    os.execv(program, [program, *sys.argv[3:]])


if __name__ == "__main__":
    main()
