"""Program: rerun's own viewer, or its web page, on the loopback device. It ends with us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

import rerun_cli

from ..aio import finish
from ..errors import AsyncblendError, ConfigError
from ..ports import HOST
from ..tap.served import check_port
from .page import served_page

_MEMORY = ("--server-memory-limit", "512MB", "--memory-limit", "2GB")  # it drops the oldest frames beyond
_START, _STOP = 60.0, 5.0  # seconds
_LOOK = 0.05  # seconds between two looks whether it listens
_TAIL = 2000  # bytes of what it said


class Program:
    """A running program of rerun's. `native` and `page` start one."""

    def __init__(self, process: asyncio.subprocess.Process, said: BinaryIO, port: int, page: int = 0) -> None:
        self._process, self._said = process, said
        self.url: str = f"rerun+http://{HOST}:{port}/proxy"
        """Where it takes what is to be shown."""
        self.address: str = f"http://{HOST}:{page}/?url={urllib.parse.quote(self.url, safe='')}" if page else ""
        """Of the web page; empty if it is a window."""

    async def closed(self) -> None:
        """Wait until it has ended.

        Raises:
            AsyncblendError: It failed, which its user has not asked it for.
        """
        if status := await self._process.wait():
            raise AsyncblendError(f"rerun's viewer ended with status {status}{_tail(self._said)}")


@contextlib.asynccontextmanager
async def native() -> AsyncIterator[Program]:
    """Open rerun's window.

    Raises:
        ConfigError: There is no display.
        AsyncblendError: It has ended before it listened, or has not listened in time.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError(
            "there is no display here for rerun's window (neither DISPLAY nor WAYLAND_DISPLAY is set); add --web to look at "
            "it in a browser, or --save run.rrd to write a file"
        )
    port = _free_port()
    async with _running(["--hide-welcome-screen", "--expect-data-soon"], [port]) as running:
        yield Program(*running, port)


@contextlib.asynccontextmanager
async def page(port: int) -> AsyncIterator[Program]:
    """Serve rerun's web page.

    Args:
        port: Of the page.

    Raises:
        ConfigError: The port is taken.
        AsyncblendError: It has ended before it listened, or has not listened in time.
    """
    check_port(port, "--port ")
    data, inner = _free_port(), _free_port()
    options = ["--serve-web", "--web-viewer-port", str(inner)]
    async with _running(options, [data, inner]) as running, served_page(port, inner, data):
        yield Program(*running, data, port)


@contextlib.asynccontextmanager
async def _running(
    options: Sequence[str], ports: Sequence[int]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, BinaryIO]]:
    """Run rerun on the loopback device. It must not say anything to the world, nor listen to it.

    Args:
        ports: Where it listens, as soon as this has begun: first for what is to be shown, then as the options say.
    """
    leash = Path(__file__).with_name("leash.py")
    own = ["--bind", HOST, "--port", str(ports[0]), *_MEMORY, *options]
    # CI: rerun sends no statistics of its use from such machines, and writes none down.
    environment = {**os.environ, "CI": "1", "RUST_LOG": "error"}
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-E", str(leash), str(os.getpid()), _executable(), *own),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us, and we end it
        )
        try:
            if not await _listens(process, ports):
                status = process.returncode
                raise AsyncblendError(f"rerun ended before it listened, with status {status}{_tail(said)}")
            yield process, said
        finally:
            await finish(_stop(process))


async def _listens(process: asyncio.subprocess.Process, ports: Sequence[int]) -> bool:
    """Wait until it listens on these ports, and return whether it does; False if it has ended.

    Raises:
        AsyncblendError: It does neither.
    """
    try:
        async with asyncio.timeout(_START):
            for port in ports:
                while process.returncode is None:
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection(HOST, port)
                        writer.close()
                        break
                    await asyncio.sleep(_LOOK)
    except TimeoutError:
        raise AsyncblendError(
            f"rerun did not listen within {_START:.0f} s; try again when this machine has less to do, or write a file with "
            f"--save run.rrd"
        ) from None
    return process.returncode is None


def _tail(said: BinaryIO) -> str:
    """Return the last line that it said, as the end of a sentence."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL))
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        port: int = trial.getsockname()[1]
        return port


def _executable() -> str:
    """Return the program of the package: the command `rerun` would be a process more between us and it."""
    folder = Path(rerun_cli.__file__).parent
    inside = folder / "Rerun.app" / "Contents" / "MacOS" / "Rerun"
    return str(inside if inside.exists() else folder / "rerun")
