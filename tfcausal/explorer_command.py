"""The work behind `tfcausal explore` and `tfcausal mask`: starts the explorer on this machine only, and a browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tfcausal.errors import InvalidArgument, RunError, message

RUNS_VARIABLE = "TFCAUSAL_RUNS"
MODEL_VARIABLE = "TFCAUSAL_MODEL"
MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
MASKS_VARIABLE = "TFCAUSAL_MASKS"
"""The folder of images that masks are drawn for."""
STARTED_VARIABLE = "TFCAUSAL_STARTED_IN"
"""The folder that the command was given in, where relative paths in a run's configuration start."""
DEFAULT_PORT = 8501
_PORTS_TRIED = 50
_SECONDS_TO_START = 60.0
_SECONDS_TO_PREPARE = 60.0
_NEEDED = ("streamlit", "plotly", "streamlit_drawable_canvas")


def explorer_root() -> Path:
    """The folder with `apps/explorer.py`: the clone that the package is installed from, or what the wheel brought.

    Raises:
        RunError: It is in neither place.
    """
    candidates = [Path(__file__).resolve().parent.parent, Path(sysconfig.get_path("data"), "share", "tfcausal")]
    for root in candidates:
        if (root / "apps" / "explorer.py").is_file():
            return root
    places = " or ".join(str(root / "apps") for root in candidates)
    raise RunError(f"The explorer was expected in {places}; it is not there. Install tfcausal again.")


def check_installed() -> None:
    """Raise `RunError` unless the packages of the extra `explorer` are installed."""
    missing = [module for module in _NEEDED if find_spec(module) is None]
    if missing:
        raise RunError(
            f"The explorer needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Install the extra: pip install 'tfcausal[explorer]'."
        )


def is_model_file(path: Path) -> bool:
    """Whether a path is meant as a model file, and not as a folder of runs: by its suffix."""
    return path.suffix.lower() in MODEL_SUFFIXES and not path.is_dir()


def check_model_file(path: Path) -> None:
    """Raise `InvalidArgument` unless there is a file that is called like a model; what is in it is not looked at."""
    if not (is_model_file(path) and path.is_file()):
        received = f"a file `{path.name}`" if path.is_file() else "a folder" if path.is_dir() else "nothing there"
        raise InvalidArgument(message(str(path), f"a model file ({', '.join(MODEL_SUFFIXES)})", received))


def quickstart_config() -> Path:
    """The configuration of the quickstart."""
    return explorer_root() / "configs" / "quickstart.yaml"


def start_quickstart(runs: Path) -> subprocess.Popen[bytes]:
    """Start the quickstart as a process of its own, which goes on when the explorer ends.

    Args:
        runs: The folder for its run directory.
    """
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tfcausal.cli import main; main()",
            "run",
            str(quickstart_config()),
            "--runs",
            str(runs),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def explore(
    runs: Path,
    port: int | None = None,
    address: str = "localhost",
    browser: bool = True,
    page: str = "",
    masks: Path | None = None,
    say: Callable[[str], None] = print,
    model: Path | None = None,
) -> int:
    """Start the explorer and wait until it ends.

    Args:
        runs: The folder of runs, or a run; it may be missing.
        port: Where it listens; None takes 8501, or the next port that is free.
        address: The address that it listens on; others than those of this machine let everybody in the network look
            at the runs.
        browser: Whether to open a browser.
        page: The page to open, such as `images`, with query parameters or without; the list of runs if empty.
        masks: A folder of images to draw masks for; None for those that the runs were trained on.
        say: Called with the address when it answers.
        model: A model file for the page of one's own images. Which one that is comes from here or from the environment
            variable TFCAUSAL_MODEL, and never from a link.

    Returns:
        The exit code of the server; 0 if it was interrupted.

    Raises:
        InvalidArgument: `runs` is a file, `model` is none, or the port is taken or none.
        RunError: The extra `explorer` is not installed, or the server does not start.
    """
    if runs.exists() and not runs.is_dir():
        raise InvalidArgument(message("runs", "a folder of runs, or a run", f"the file {runs}"))
    if model is not None:
        check_model_file(model)
    check_installed()
    chosen = _free_port(address) if port is None else _checked_port(port, address)
    root = explorer_root()
    words = ["run", str(root / "apps" / "explorer.py"), "--server.port", str(chosen), "--server.headless", "true"]
    words += ["--server.address", address, "--server.scriptHealthCheckEnabled", "true"]
    if address not in ("localhost", "127.0.0.1", "::1"):
        words += ["--server.allowedHosts", "*"]
    environment = {**os.environ, RUNS_VARIABLE: str(runs.resolve()), STARTED_VARIABLE: str(Path.cwd())}
    environment |= {} if masks is None else {MASKS_VARIABLE: str(masks.resolve())}
    environment |= {} if model is None else {MODEL_VARIABLE: str(model.resolve())}
    # In this folder Streamlit finds `.streamlit/config.toml`: the theme, and what keeps the server closed.
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", *words], cwd=root, env=environment, stdout=subprocess.DEVNULL
    )
    host = "localhost" if address in ("0.0.0.0", "::") else f"[{address}]" if ":" in address else address
    server_url = f"http://{host}:{chosen}"
    before = _interrupted_by(signal.SIGTERM)
    try:
        _wait_for(server, f"{server_url}/_stcore/health")
        _prepare(f"{server_url}/_stcore/script-health-check")
        url = f"{server_url}/{page}"
        what = f"The explorer shows {model or runs}" if masks is None else f"Draw masks for {masks}"
        say(f"{what} at {url} (end it with Ctrl+C)")
        if browser and _has_display():
            webbrowser.open(url)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupted_by(number: signal.Signals) -> Any:
    """Have a signal end the command as Ctrl+C does, with its server; gives what it did before, if it can be changed."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, signal.default_int_handler)


def _wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RunError(f"The explorer ended while it started, with exit code {server.returncode}; see above.")
        try:
            _ask(url, 1.0)
        except (OSError, HTTPException):
            time.sleep(0.05)
        else:
            return
    raise RunError(f"The explorer does not answer at {url} after {_SECONDS_TO_START:.0f} seconds.")


def _prepare(url: str) -> None:
    """Have the server draw the first page once, for nobody, so that its imports are done when somebody looks."""
    with suppress(OSError, HTTPException):  # then the first page takes longer
        _ask(url, _SECONDS_TO_PREPARE)


def _ask(url: str, seconds: float) -> None:
    """Read an address of this machine, past any proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=seconds) as answer:
        answer.read()


def _free_port(address: str) -> int:
    for port in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED):
        if _is_free(port, address):
            return port
    last = DEFAULT_PORT + _PORTS_TRIED - 1
    raise InvalidArgument(message("port", f"a free port from {DEFAULT_PORT} to {last}", "none", "Use --port."))


def _checked_port(port: int, address: str) -> int:
    if not 0 < port < 65536:
        raise InvalidArgument(message("port", "a number from 1 to 65535", port))
    if not _is_free(port, address):
        raise InvalidArgument(message("port", "a free port", f"{port}, which another program listens on"))
    return port


def _is_free(port: int, address: str) -> bool:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
    except OSError:
        return False
    return True


def _has_display() -> bool:
    """Whether a browser can open a window; on a terminal alone `webbrowser` would start one of texts."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
