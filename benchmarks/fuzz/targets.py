"""What is fuzzed: functions that take any bytes, and must raise nothing but the one error that they promise.

Each has seeds, which are real ones. A message or a recording is several pieces of bytes, joined by `SEPARATOR`.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asyncblend.cli.config_file import load_config
from asyncblend.errors import ConfigError, ProtocolError, RecordingError
from asyncblend.recording import Recording
from asyncblend.wire import payload, protocol

__all__ = ["SEPARATOR", "TARGETS", "Target"]

SEPARATOR = b"\xff\x00|\x00\xff"
_TOKEN = "5ca1ab1e"
_BLOCK = 512  # bytes; a tar consists of these
_SHARED = np.zeros(8192, np.uint8)
_SHARED.flags.writeable = False


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed."""

    run: Callable[[bytes, Path], bool]
    """Takes the input, and a folder for files. Returns whether it could be read. Whatever it raises is a finding."""
    seeds: Callable[[], Iterator[bytes]]
    words: tuple[str, ...]
    """What the fuzzer puts into inputs."""


# -- messages ----------------------------------------------------------------------------------------------------


def _message(data: bytes, folder: Path) -> bool:
    """Decode as the hub and the worker do."""

    def hold(slot: int) -> payload.Array:
        if slot != 0:
            raise ValueError(f"no slot {slot}")
        return _SHARED

    parts, good = data.split(SEPARATOR), True
    for values in (True, False):
        try:
            message = protocol.decode(parts, hold, values=values)
            if message.kind in (protocol.HELLO, protocol.BEAT):
                protocol.life_of(message.fields, _TOKEN)
            if message.kind == protocol.HELLO:
                protocol.pairs(message.fields, "holding")
            if message.kind == protocol.WELCOME:
                protocol.check_version(message.fields, "the host")
        except ProtocolError:
            good = False
        else:
            leases = message.fields["leases"] if values and message.kind == protocol.LEASES else []
            for one in (message, *leases):
                assert _good(one.values), one.values
    return good


def _good(value: Any) -> bool:
    """Return whether this may be among the values of a message. Arrays may not be changed by who receives them."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _good(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_good, value))
    if isinstance(value, np.ndarray):
        return value.dtype in payload.DTYPES.values() and not value.flags.writeable and value.tobytes() is not None
    return value is None or isinstance(value, bool | int | float | str)


def _messages() -> Iterator[bytes]:
    who = {"token": _TOKEN, "version": protocol.VERSION, "instance": 0, "epoch": 1}
    lease = {"pass": 0, "lease": 1, "index": 2}
    values = payload.encode_values(
        {"image": np.zeros((2, 3, 3), np.uint8), "xy": np.ones(2), "n": [1, "a", None, float("nan"), {"$": True}]}
    )
    long = payload.encode_values({"text": "y" * protocol.MAX_HEADER, "none": np.zeros((0, 3), np.float32)})
    plain = {"arrays": [], "values": {"n": [1, "a", {"$float": "nan"}]}}
    shared = b'{"arrays":[["uint8",[2,3],64],["int64",[1]]],"values":{"x":{"$":0},"y":{"$":1}},"slot":0}'
    for kind, fields, carried in (
        (protocol.HELLO, {**who, "ready": True, "holding": [[0, 1], [0, 2]]}, ()),
        (protocol.BEAT, {**who, "rss": 1 << 28}, ()),
        (protocol.READY, {"blender": "4.5.0"}, ()),
        (protocol.FRAME, lease, values),
        (protocol.FRAME, lease, long),
        (protocol.FRAME, lease, [shared, np.zeros(1, np.int64)]),
        (protocol.FAILED, {**lease, "error": "e", "traceback": "t"}, ()),
        (protocol.LEASE, {**lease, "urgent": False}, values),
        (protocol.LEASES, {"leases": [[0, 1, 2, False], [1, 0, 3, True, plain]]}, ()),
        (protocol.REVOKE, {"pass": 0, "leases": [0, 1]}, ()),
        (protocol.WELCOME, {"version": protocol.VERSION, "seed": 1}, ()),
        (protocol.STOP, {"reason": ""}, ()),
        (protocol.BYE, {}, ()),
    ):
        yield SEPARATOR.join(bytes(part) for part in protocol.encode(kind, fields, carried))


# -- recordings --------------------------------------------------------------------------------------------------


def _recording(data: bytes, folder: Path) -> bool:
    """Read a shard with its table and without.

    The first piece says whether to put sums right that the fuzzer cannot guess: 1 those of the tar's headers, 2 the
    checksum at the end of the table.
    """
    how, tar, table, *_ = [*data.split(SEPARATOR), b"", b""]
    if how[:1] in b"13":
        tar = _summed(tar)
    if how[:1] in b"23":
        text = table[: table.rfind(b',"crc32"')]
        table = b'%s,"crc32":"%08x"}' % (text, zlib.crc32(text))
    (folder / "shard-000000.tar").write_bytes(tar)
    (folder / "shard-000000.json").write_bytes(table)
    good = True
    for _ in range(2):
        try:
            for sample in Recording(folder):
                assert isinstance(sample.index, int)
        except RecordingError:
            good = False
        (folder / "shard-000000.json").unlink(missing_ok=True)
    return good


def _summed(tar: bytes) -> bytes:
    """Return a tar with right sums in whatever looks like a header."""
    data = bytearray(tar)
    for at in range(0, len(data) - _BLOCK + 1, _BLOCK):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + _BLOCK])
    return bytes(data)


def _recordings() -> Iterator[bytes]:
    from asyncblend.recording.checksums import FORMAT
    from asyncblend.recording.codec import Images, encode
    from asyncblend.recording.writer import ShardSize, Writer

    values = {"image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "x": np.ones(2, np.float32), "n": [1, "a"]}
    for image_format in ("png", "jpeg"):
        with tempfile.TemporaryDirectory() as folder:
            writer = Writer(Path(folder), {"seed": 0, "script": "scene.py"}, ShardSize(2))
            writer.open()
            for index in range(2):
                writer.add(
                    index, encode(values, index=index, instance=0, params={"a": 0.5}, images=Images(image_format))
                )
            writer.close()
            tar, table = (Path(folder, f"shard-000000.{kind}").read_bytes() for kind in ("tar", "json"))
        # Of format 2, in which nothing is checked: what is behind the checksums must be as robust.
        old = tar.replace(b'"format":%d,' % FORMAT, b'"format":2,').replace(b'"crc32":', b'"crc33":')
        for how in (b"0", b"1", b"3"):
            yield SEPARATOR.join((how, tar, table))
        yield SEPARATOR.join((b"1", old, b""))


# -- configs -----------------------------------------------------------------------------------------------------


def _config(data: bytes, folder: Path) -> bool:
    path = folder / "config.toml"
    path.write_bytes(data)
    try:
        load_config(path)
    except ConfigError:
        return False
    return True


def _configs() -> Iterator[bytes]:
    yield b'script = "scene.py"\ninstances = 2\nseed = 7\nlength = 100\nordered = true\n'
    yield b"""# a comment
script = '~/scene.py'
scene = "a.blend"
blender = "bpy"
script_args = ["--fast", "a"]
shard = [0, 2]
queue_size = 0x10
params = { level = 0.5, names = ["a", '''b'''], when = 1979-05-27T07:32:00Z }

[timeouts]
start = 60
beat = 1e1

[restart]
max_restarts = 3
backoff = 0.5
"""
    yield b'script = "scene.py"\non_bad_sample = "skip"\nshared_memory = false\n[params]\nx.y = inf\n[[params.list]]\nz = nan\n'


TARGETS = {
    "message": Target(
        _message,
        _messages,
        ('"$"', '"$float"', '"nan"', '"arrays"', '"values"', '"slot"', '"apart":true', '"tree"', *payload.DTYPES),
    ),
    "recording": Target(
        _recording, _recordings, ('"$"', '"files"', '"crc32"', '"format":2', '"samples"', "1e999", "ustar", "IHDR")
    ),
    "config": Target(
        _config, _configs, ("timeouts", "restart", "params", "shard", "'''", '"""', "[[", "inf", "~root/")
    ),
}
