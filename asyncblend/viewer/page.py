"""Page: rerun's web page, served so that the browser that shows it speaks to this machine alone.

rerun's own page loads fonts from elsewhere, reports how it is used, and asks for news. So a browser gets it through
this server, which adds a policy that browsers obey: connections to nothing but this page and rerun's server beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ..ports import HOST
from ..tap.served import unusable

_HEAD = 64 << 10  # bytes of a request's or an answer's head
_PIECE = 256 << 10
_METHODS = (b"GET ", b"HEAD ")


@contextlib.asynccontextmanager
async def served_page(port: int, page: int, data: int) -> AsyncIterator[None]:
    """Serve the page at a port of the loopback device.

    Args:
        port: Where browsers find it.
        page: Where rerun's own server has it.
        data: Where rerun's server gives what is to be shown.

    Raises:
        ConfigError: The port cannot be bound.
    """
    policy = (
        "default-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' data: blob:; "
        f"connect-src 'self' http://{HOST}:{data}; frame-ancestors 'none'"
    )
    header = f"content-security-policy: {policy}\r\nconnection: close\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        # The end of the event loop cancels this, while a browser keeps a connection. asyncio would report that.
        with contextlib.suppress(*ends, asyncio.CancelledError):
            await _pass_on(reader, writer, page, header)
        writer.close()

    try:
        server = await asyncio.start_server(answer, HOST, port, limit=_HEAD)
    except OSError as error:  # it was free when rerun was started
        raise unusable(port, "--port ", error) from None
    try:
        yield
    finally:
        server.close()  # the browsers' connections end with rerun's


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, page: int, header: bytes) -> None:
    """Pass one request on to rerun's server, and its answer back with one more header."""
    request, _, rest = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
    if not request.startswith(_METHODS):
        writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        return
    upstream, out = await asyncio.open_connection(HOST, page, limit=_HEAD)
    try:
        out.write(request + b"\r\nconnection: close\r\n" + _without(rest, b"connection:"))
        status, _, headers = (await upstream.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        writer.write(status + b"\r\n" + header + _without(headers, b"connection:"))
        while piece := await upstream.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    finally:
        out.close()


def _without(headers: bytes, name: bytes) -> bytes:
    return b"\r\n".join(line for line in headers.split(b"\r\n") if not line.lower().startswith(name))
