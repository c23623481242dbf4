"""Nodes on one machine that have a network, processes and temporary files of their own, so that a cut is a real one.

Each node is a set of namespaces of Linux: network, PID and mount. The kernel ends all of it, with the interfaces,
addresses and files, together with the first process of the PID namespace; and that one ends when its standard input
does. So nothing is left behind, however the program that made the nodes ends. The namespaces have no names, and their
addresses mean nothing outside of them: runs at the same time do not meet.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .conftest import LIMIT, QUIET

_UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_PRIVATE = "/dev/shm"
"""Where each node has files of its own, in memory. Nothing of the outside that a test needs is there."""
# The first process inherits the orphans. It ignores their ends, so that the kernel takes them away.
_FIRST = f"mount -t tmpfs tmpfs {_PRIVATE} && echo ready && exec env --ignore-signal=CHLD cat"
_TRIAL = f"ip link add type bridge && ip link add type veth && {_FIRST}"


@functools.cache
def unavailable() -> str:
    """Return why there can be no such nodes here, or nothing."""
    if missing := [program for program in ("unshare", "nsenter", "ip") if shutil.which(program) is None]:
        return f"there is no {' and no '.join(missing)} here: apt install util-linux iproute2"
    command = [*_UNSHARE, "sh", "-c", _TRIAL]
    trial = subprocess.run(command, input="", capture_output=True, text=True, timeout=LIMIT, check=False)
    return f"needs root, and Linux with bridges and veth: {trial.stderr.strip()}" if trial.returncode else ""


class _Namespace(contextlib.AbstractContextManager["_Namespace"]):
    """A network, a tree of processes, and a folder; a context manager that ends them."""

    def __init__(self) -> None:
        self._keeper = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", _FIRST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert self._keeper.stdout is not None
            assert self._keeper.stdout.readline(), unavailable()
            (first,) = psutil.Process(self._keeper.pid).children()
            self.pid = first.pid  # outside of the namespace; inside it is 1
            self.ip("link set lo up")
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        # When this returns, all processes are gone, because the first one of a namespace waits for the others.
        self._keeper.communicate()

    def ip(self, arguments: str) -> None:
        """Run `ip` in this network."""
        enter = ("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip")
        subprocess.run([*enter, *arguments.split()], check=True, timeout=LIMIT)


class Node(_Namespace):
    """One machine of a network.

    Args:
        switch: Where the bridge is that joins the nodes.
        number: Of this node, from 0.
    """

    def __init__(self, switch: _Namespace, number: int) -> None:
        super().__init__()
        self.address = f"10.77.0.{number + 1}"
        self.folder = Path(f"/proc/{self.pid}/root{_PRIVATE}")
        """The node's temporary folder, as the outside sees it."""
        self._switch, self._port = switch, f"port{number}"
        switch.ip(f"link add {self._port} type veth peer name eth0 netns {self.pid}")
        switch.ip(f"link set {self._port} master bridge up")
        self.ip(f"address add {self.address}/24 dev eth0")
        self.ip("link set eth0 up")
        self.ip("route add default dev eth0")  # programs ask for the route to a public address to find their own

    def start(self, *command: str | Path, env: Mapping[str, str] = os.environ) -> subprocess.Popen[str]:
        """Start a command in this node, with pipes to it. What it has started ends at the latest with the node."""
        enter = ("nsenter", f"--target={self.pid}", "--net", "--pid", "--mount")
        pipe = subprocess.PIPE
        environment = {**env, "TMPDIR": _PRIVATE}
        return subprocess.Popen([*enter, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)

    def run(self, *command: str | Path, env: Mapping[str, str] = os.environ) -> str:
        """Run a command in this node, and return what it printed."""
        return finish(self.start(*command, env=env))

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Return what runs in this node, with this word in its command line."""
        own = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                inside = os.stat(f"/proc/{process.pid}/ns/pid").st_ino == own
                if inside and process.pid != self.pid and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def cut(self) -> None:
        """Part this node from the others. Its processes live on, and neither side is told: its link stays up."""
        self._switch.ip(f"link set {self._port} nomaster")

    def mend(self) -> None:
        """Join it to the others again."""
        self._switch.ip(f"link set {self._port} master bridge")


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a started command, and return the rest of what it printed."""
    with process:
        try:
            output, errors = process.communicate(timeout=LIMIT)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, f"{process.args!r} ended with {process.returncode}:\n{output}\n{errors}"
    return output


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Node]]:
    """Make some nodes that are joined by a bridge, and end them with all that runs on them."""
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_Namespace())
        switch.ip("link add bridge type bridge")
        switch.ip("link set bridge up")
        nodes = []
        for number in range(count):
            nodes.append(Node(switch, number))
            stack.push(nodes[-1])
        yield nodes


# -- Ray ---------------------------------------------------------------------------------------------------------

_PORT = 6379


@dataclass(frozen=True)
class RayNetwork:
    """A cluster of Ray over the nodes of a network. The head is the first of them."""

    nodes: list[Node]
    environment: Mapping[str, str]
    """Of all processes of the cluster, and of its drivers."""

    def drive(self, *program: str | Path) -> subprocess.Popen[str]:
        """Start a program of Python in the head's node. `ray.init()` makes it a driver of this cluster."""
        environment = {**self.environment, "RAY_ADDRESS": f"{self.nodes[0].address}:{_PORT}"}
        return self.nodes[0].start(sys.executable, *program, env=environment)


@contextlib.contextmanager
def ray_network(*nodes: Mapping[str, Any], environment: Mapping[str, str] = {}) -> Iterator[RayNetwork]:
    """Start a cluster of Ray, and end it with all that runs on it.

    Args:
        nodes: For each node options of `ray start`, such as `{"num_cpus": 1}`. The first is the head.
        environment: Variables of all processes besides those that every test has.
    """
    with network(len(nodes)) as made:
        cluster = RayNetwork(made, {**os.environ, **QUIET, **environment})
        head = {"port": _PORT, "include_dashboard": False, **nodes[0]}
        finish(_start_ray(cluster, 0, head))
        address = {"address": f"{made[0].address}:{_PORT}"}
        for started in [_start_ray(cluster, number, {**address, **nodes[number]}) for number in range(1, len(nodes))]:
            finish(started)
        yield cluster


def _start_ray(cluster: RayNetwork, number: int, options: Mapping[str, Any]) -> subprocess.Popen[str]:
    node = cluster.nodes[number]
    options = {"node_ip_address": node.address, "temp_dir": f"{_PRIVATE}/ray", **options}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = ("-m", "ray.scripts.scripts", "start", *(["--head"] if number == 0 else []), *arguments)
    return node.start(sys.executable, *command, env=cluster.environment)
