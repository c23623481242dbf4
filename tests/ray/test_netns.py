"""The nodes that other tests cut off: they reach each other, a cut parts them, and nothing is left of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from .conftest import LIMIT, until
from .netns import Node, network, ray_network, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

LISTEN = "import socket, sys; s = socket.create_server(('', 5000)); print('ready', flush=True); sys.stdin.read()"
REACH = "import socket, sys; s = socket.socket(); s.settimeout({}); sys.exit(s.connect_ex(('{}', 5000)) != 0)"


def reaches(one: Node, other: Node, limit: float = LIMIT) -> bool:
    """Tell whether a program on one node can connect to one on the other within some seconds."""
    with one.start(sys.executable, "-c", REACH.format(limit, other.address)) as process:
        return process.wait(LIMIT) == 0


def test_a_cut_parts_two_nodes_until_it_is_mended() -> None:
    with network(2) as (one, other), other.start(sys.executable, "-c", LISTEN) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        assert reaches(one, other)
        other.cut()
        assert not reaches(one, other, 0.5)
        assert listener.poll() is None
        other.mend()
        until(lambda: reaches(one, other))


def test_nodes_see_neither_the_outside_nor_what_others_do_there(tmp_path: Path) -> None:
    """Their own network, processes and temporary files; the same other files."""
    (tmp_path / "file").touch()
    with network(2) as (one, other):
        one.run("touch", "/dev/shm/own")
        assert one.run("ls", tmp_path, "/dev/shm").split()[1::2] == ["own", "file"]
        assert [path.name for path in one.folder.iterdir()] == ["own"]
        assert not list(other.folder.iterdir())
        assert one.run("hostname", "-I").split()[0] == one.address
        assert one.run("sh", "-c", "echo $$ $TMPDIR") != other.run("sh", "-c", "echo $$ $TMPDIR")


def test_the_end_of_a_network_ends_all_that_runs_on_it() -> None:
    with pytest.raises(ZeroDivisionError), network(2) as (_, node):
        node.run("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
        until(lambda: node.processes("sleep"))  # `sh` has not waited for it
        (orphan,) = node.processes("sleep")
        raise ZeroDivisionError
    assert not orphan.is_running()
    assert not psutil.pid_exists(node.pid)


def test_a_killed_test_leaves_nothing() -> None:
    """No process, and so, as namespaces without a name live no longer than those, no network."""
    kill = "n[0].start('sleep', '1000'); print(n[0].pid, n[1].pid, flush=True); import os; os.kill(os.getpid(), 9)"
    program = f"from tests.ray.netns import network\nwith network(2) as n: {kill}"
    root = Path(__file__).parents[2]
    maker = [sys.executable, "-c", program]
    ended = subprocess.run(maker, cwd=root, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert ended.returncode == -signal.SIGKILL
    until(lambda: not any(psutil.pid_exists(int(pid)) for pid in ended.stdout.split()))


DRIVER = """
import sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@ray.remote(num_cpus=0)
def address():
    return ray.util.get_node_ip_address()

ray.init(log_to_driver=False)
nodes = {node["NodeManagerAddress"]: On(node["NodeID"], soft=False) for node in ray.nodes()}
for line in sys.stdin:
    node, limit = line.split()
    try:
        print(ray.get(address.options(scheduling_strategy=nodes[node]).remote(), timeout=float(limit)), flush=True)
    except ray.exceptions.GetTimeoutError:
        print("silence", flush=True)
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_tasks_of_ray_run_on_every_node_that_is_not_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='pip install ".[ray]"')
    (tmp_path / "driver.py").write_text(DRIVER)
    with ray_network({"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}) as cluster:
        nodes = cluster.nodes
        with cluster.drive(tmp_path / "driver.py") as driver:
            assert driver.stdin is not None
            assert driver.stdout is not None

            def ask(node: Node, limit: float = LIMIT) -> str:
                print(node.address, limit, file=driver.stdin, flush=True)
                return driver.stdout.readline().strip()  # type: ignore[union-attr]

            assert [ask(node) for node in nodes] == [node.address for node in nodes]
            nodes[2].cut()
            assert ask(nodes[2], 1) == "silence"
            assert nodes[2].processes("raylet")
            assert ask(nodes[1]) == nodes[1].address
            nodes[2].mend()
            assert ask(nodes[2]) == nodes[2].address
            driver.stdin.close()
            assert driver.wait(LIMIT) == 0
