"""The browser in which the tests walk through the explorer: `make browser` finds it, or installs it.

It is the program that the environment variable CHROMIUM names, else `chromium`, `chromium-browser` or `google-chrome`
on the PATH, else the one that Playwright has downloaded. Where there is none:

- with apt-get, as root or by `sudo` without a password: `apt-get install chromium chromium-driver`; and
  `playwright install --with-deps chromium` where that package is only a pointer to a snap, as on Ubuntu;
- elsewhere: `playwright install chromium`, which downloads one into the user's cache.

`make test` calls it before the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "chromium-driver")


def find() -> str | None:
    """The browser's program, or None.

    Raises:
        FileNotFoundError: CHROMIUM names something that does not run.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        if not _runs(named):
            raise FileNotFoundError(f"CHROMIUM: expected a browser that runs; received {named!r}")
        return shutil.which(named)
    for name in NAMES:
        path = shutil.which(name)
        if path and _runs(path):
            return path
    return _of_playwright()


def can_use_apt() -> bool:
    """Whether packages can be installed here without asking anybody."""
    return shutil.which("apt-get") is not None and _as_root() is not None


def install() -> str:
    """Install the browser; says what it does.

    Returns:
        The browser's program.

    Raises:
        subprocess.CalledProcessError: An installer has failed.
        FileNotFoundError: An installer went through, and there still is no browser.
    """
    if can_use_apt():
        print(f"Installing {' and '.join(PACKAGES)} by apt-get, for the tests of the explorer.", flush=True)
        apt = [*(_as_root() or ()), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        subprocess.run([*apt, "update", "--quiet"], check=True)
        subprocess.run([*apt, "install", "--quiet", "--yes", "--no-install-recommends", *PACKAGES], check=True)
        if find() is None:
            _download("--with-deps")
    else:
        _download()
    found = find()
    if found is None:
        raise FileNotFoundError("The installer went through, and there still is no browser. Set CHROMIUM=/path/to/it.")
    return found


def main() -> None:
    """Find the browser, or install it."""
    try:
        found = find() or install()
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        sys.exit(str(error))
    print(f"The browser of the explorer's tests: {found}")


def _download(*options: str) -> None:
    words = [sys.executable, "-m", "playwright", "install", *options, "chromium"]
    print(f"Downloading Chromium into the user's cache: {' '.join(words[2:])}", flush=True)
    subprocess.run(words, check=True)


def _as_root() -> list[str] | None:
    """The words before a command that make it run as root; None where that needs a password, or cannot be."""
    if not hasattr(os, "geteuid"):
        return None
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    return [sudo, "-n"] if sudo and _succeeds([sudo, "-n", "true"]) else None


def _of_playwright() -> str | None:
    if find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def _runs(program: str) -> bool:
    """Whether it is a browser that runs, and not the pointer to a snap that some systems have in its place."""
    return _succeeds([program, "--version"])


def _succeeds(words: list[str]) -> bool:
    try:
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if __name__ == "__main__":
    main()
