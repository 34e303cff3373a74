"""Ray, started for the time of one piece of work, without its messages, its dashboard and its usage statistics.

Needs the extra `ray`: `pip install "tfcausal[ray]"`. Ray is imported where it is used.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tfcausal.errors import RunError, UnsupportedOperation

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by itself, after a warning
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what Ray's own processes say, which otherwise lands in standard output
}
_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Ray reads it when it is imported: without clusters it has the address 127.0.0.1."""
_SECONDS_TO_CONNECT = 10.0
_STORE_BYTES = 100 << 20
"""What Ray sets aside for objects: here they are names and numbers."""


def ray_module(address: str | None = None) -> Any:
    """The module `ray`, with its messages and usage statistics off.

    Args:
        address: The cluster that it is needed for. Where there is none, and no RAY_ADDRESS, a Ray that is started
            listens on the loopback address alone: whoever reaches a Ray can run anything in it.

    Raises:
        UnsupportedOperation: It is not installed; the message names the extra.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if address is None and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(*_LOOPBACK)
    try:
        return import_module("ray")
    except ImportError as error:
        remedy = "Install it: pip install 'tfcausal[ray]', or use --engine local."
        raise UnsupportedOperation(f"The engine ray needs Ray, which cannot be imported ({error}). {remedy}") from error


@contextmanager
def ray_session(address: str | None = None, cpus: int = 1) -> Iterator[Any]:
    """Ray, connected; what was started here is stopped at the end.

    Args:
        address: The cluster. None takes the one that this process is connected with, else RAY_ADDRESS; where that is
            not set, either, a Ray of this machine alone is started.
        cpus: CPUs that a Ray which is started here is to have at least; it has no fewer than this process may use.

    Yields:
        The module `ray`.

    Raises:
        UnsupportedOperation: Ray is not installed.
        RunError: There is no cluster at the address, or Ray cannot be started.
    """
    ray = ray_module(address)
    if ray.is_initialized() and address is None:
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_listening(address)
    options: dict[str, Any] = {"address": address, "logging_level": logging.CRITICAL, "log_to_driver": False}
    if address == "local":
        options |= {
            "num_cpus": max(cpus, usable_cores()),
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
    try:
        ray.init(**options)
    except Exception as error:  # Ray's own, and those of gRPC, of the system and of ray.init's arguments
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if address == "local":
            raise RunError(f"Ray cannot be started on this machine ({reason}).") from error
        raise _no_cluster(address, reason) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Ask whether anything is at an address: Ray itself tries for minutes, and says so many times."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # `local` and `auto`, and what only Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, f"nothing that answers there ({error})") from None


def _no_cluster(address: str, received: str) -> RunError:
    return RunError(
        f"{address}: expected the address of a Ray cluster, from --address or RAY_ADDRESS; received {received}."
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
