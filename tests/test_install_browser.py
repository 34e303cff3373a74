"""The script that finds or installs the browser of the walks through the explorer; nothing is installed here."""

import os
import subprocess
from importlib import util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install_browser.py"


@pytest.fixture
def script():
    specification = util.spec_from_file_location("install_browser", SCRIPT)
    module = util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def machine(tmp_path, monkeypatch, script):
    """A machine with nothing but the programs that a test puts on it, and without a browser of Playwright's."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(script, "_of_playwright", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def put(name, code="exit 0"):
        path = programs / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/log\n{code}\n')
        path.chmod(0o755)
        return str(path)

    put.log = tmp_path / "log"
    return put


def test_the_browser_is_the_one_that_is_named_or_on_the_path(script, machine, monkeypatch):
    assert script.find() is None
    chrome = machine("google-chrome")
    assert script.find() == chrome
    machine("chromium-browser", "exit 1")  # Ubuntu's pointer to a snap
    assert script.find() == chrome
    chromium = machine("chromium")
    assert script.find() == chromium
    monkeypatch.setenv("CHROMIUM", chrome)
    assert script.find() == chrome
    monkeypatch.setenv("CHROMIUM", "/nowhere/chrome")
    with pytest.raises(FileNotFoundError, match="expected a browser that runs; received '/nowhere/chrome'"):
        script.find()


def test_apt_needs_root_or_a_sudo_that_asks_nothing(script, machine, monkeypatch):
    machine("sudo")
    assert not script.can_use_apt()
    machine("apt-get")
    assert script.can_use_apt()
    machine("sudo", "exit 1")
    assert not script.can_use_apt()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert script.can_use_apt()


@pytest.mark.parametrize("works", [True, False])
def test_debian_installs_its_package_and_ubuntu_asks_playwright(script, machine, monkeypatch, capsys, works):
    machine("sudo", 'shift\nexec "$@"')
    machine("true")
    machine("env", 'shift\nexec "$@"')
    chromium = f"{machine('unused')[: -len('unused')]}chromium"
    made = f'if [ "$1" = install ]; then printf "#!/bin/sh\\nexit {0 if works else 1}\\n" > {chromium}; fi'
    machine("apt-get", f"PATH=/usr/bin:/bin\n{made}\n[ -e {chromium} ] && chmod 755 {chromium}\nexit 0")
    downloads = []

    def download(*options):
        downloads.append(options)
        monkeypatch.setattr(script, "_of_playwright", lambda: "/its/own/chrome")

    monkeypatch.setattr(script, "_download", download)
    found = script.install()
    log = machine.log.read_text()
    assert "apt-get update --quiet" in log
    assert "apt-get install --quiet --yes --no-install-recommends chromium chromium-driver" in log
    assert "Installing chromium and chromium-driver by apt-get" in capsys.readouterr().out
    assert (found, downloads) == ((chromium, []) if works else ("/its/own/chrome", [("--with-deps",)]))


def test_elsewhere_it_downloads_one_into_the_cache(script, machine, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda words, **options: commands.append(words))
    with pytest.raises(FileNotFoundError, match="there still is no browser"):
        script.install()
    assert commands == [[script.sys.executable, "-m", "playwright", "install", "chromium"]]
    assert "Downloading Chromium into the user's cache" in capsys.readouterr().out


def test_a_failed_install_ends_in_a_line_and_not_in_a_traceback(script, machine, monkeypatch):
    def fail():
        raise subprocess.CalledProcessError(100, ["apt-get"])

    monkeypatch.setattr(script, "install", fail)
    with pytest.raises(SystemExit, match="apt-get"):
        script.main()
