"""What a Blender does to itself when it is ordered to: the scripts obey SIGUSR1, whenever it comes."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

__all__ = ["CLOSES", "GARBLES", "HANGS", "OBEY", "REDIRECTS", "give"]

HANGS = ("hang for-ever",)
"""Orders to stand still while the heartbeats go on."""

CLOSES = ("close nothing-else", "close and-reopen")
"""Orders to close all descriptors but the first three, as a careless script does. ZeroMQ aborts the process then."""

GARBLES = ("garble frames",)
"""Orders to send frames whose headers are good and whose values cannot be read, for the rest of this life."""

REDIRECTS = ("redirect /dev/null", "redirect /dev/full", "redirect unread-pipe")
"""Orders to send the output elsewhere. Nothing else may come of it."""

OBEY = """\
import itertools
import os
import pathlib
import signal
import threading

from asyncblend.blender.serving import worker

UNREADABLE = itertools.cycle([
    [b'{"arrays":[["uint8",[7]]],"values":{"a":{"$":0}}}', b"short"],
    [b'{"arrays":[["object",[1]]],"values":{"a":{"$":0}}}', b"12345678"],
    [b'{"arrays":[["uint8",[4611686018427387904,4]]],"values":{"a":{"$":0}}}', b"x"],
    [b'{"arrays":[["uint8",[1],0]],"slot":1000000000,"values":{"a":{"$":0}}}'],
    [b'{"arrays":[],"values":{"a":{"$":5}}}'],
    [b'{"arrays":[],"values":{}}', b"nothing describes this"],
    [b'{"arrays":[],"values":[]}'],
])


def hang(how_long):
    threading.Event().wait()


def close(then):
    os.closerange(3, 1 << 16)
    if then == "and-reopen":
        for _ in range(64):
            os.open(os.devnull, os.O_RDWR)


def garble(what):
    worker.encode_sample = lambda *_: next(UNREADABLE)


def redirect(where):
    if where == "unread-pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(where, os.O_WRONLY)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)


def obey(*_):
    name, how = pathlib.Path(__file__).with_name(f"order-{os.getpid()}").read_text().split()
    globals()[name](how)


signal.signal(signal.SIGUSR1, obey)
"""
"""The part of a script that obeys."""


def give(process: psutil.Process, order: str, script: Path) -> None:
    """Order the Blender of a process, which serves that script, to do something.

    Raises:
        psutil.Error: It has ended.
    """
    script.with_name(f"order-{process.pid}").write_text(order)
    process.send_signal(signal.SIGUSR1)
