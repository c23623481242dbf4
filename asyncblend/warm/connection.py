"""Connection: joins this program to a cluster of Ray. Ray is imported only then."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading

from ..errors import ConfigError, ForkedProcessError

_PATIENCE = 10.0  # seconds that a head may take to answer
_connected = False  # whether this process was connected here, also if it is no more
_inherited = False  # whether it was forked from one that was connected


def connect(address: str | None = None, *, quiet: bool = False) -> None:
    """Connect this program to a cluster, unless it is connected.

    Args:
        address: Where the cluster is, such as "10.0.0.5:6379". None: as the environment's RAY_ADDRESS says, or on this
            machine, where one is started if there is none. "auto" does the same, and starts none.
        quiet: Whether Ray tells only what is wrong.

    Raises:
        ConfigError: There is no cluster; or the address is that of Ray's client, through which files cannot be seen; or
            the program is connected to another one.
        ForkedProcessError: This process is a forked copy of one that was connected.
    """
    global _connected
    import ray
    from ray.exceptions import RayError

    if _inherited:
        raise ForkedProcessError(
            "this process was forked from one that is connected to Ray, which cannot be used in such a copy; start it "
            'anew instead, as a DataLoader does with multiprocessing_context="spawn", or connect only after the fork'
        )
    if ray.is_initialized():
        present = ray.get_runtime_context().gcs_address
        if address is not None and ":" in address and _resolved(address) != _resolved(present):
            raise ConfigError(
                f"this program is connected to the cluster at {present} already, and cannot join the one at {address} too; "
                f"leave the address out, or call ray.shutdown() first"
            )
        return
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address is not None and address.startswith("ray://"):
        raise ConfigError(
            f"{address!r} is for programs outside of the cluster; run this on one of its nodes, without an address or with "
            f"that of its head, such as 10.0.0.5:6379"
        )
    try:
        if address is not None and ":" in address:  # Ray itself would try for two minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        in_main = (
            threading.current_thread() is threading.main_thread()
        )  # in others Ray warns that it handles no SIGTERM
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, logging_level="info" if not quiet else "warning" if in_main else "error")
        finally:
            if in_main and on_sigterm not in (signal.SIG_DFL, None):  # Ray's own only exits, and the program has chosen
                signal.signal(signal.SIGTERM, on_sigterm)
        _connected = True
    except (OSError, ValueError, OverflowError, RuntimeError, RayError) as error:
        where = "on this machine" if address in (None, "auto") else f"at {address!r}"
        raise ConfigError(f"no cluster of Ray that this program may join {where}: {error}") from None
    if quiet:
        for name, level in {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
            logging.getLogger(name).setLevel(level)


def _resolved(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    try:
        return socket.gethostbyname(host), port
    except OSError:
        return host, port


def _note_fork() -> None:
    global _inherited
    ray = sys.modules.get("ray")
    if _connected or (ray is not None and ray.is_initialized()):
        _inherited = True


os.register_at_fork(after_in_child=_note_fork)
