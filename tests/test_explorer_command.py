import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from importlib import util
from pathlib import Path

import pytest

from tfcausal import explorer_command
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.explorer_command import check_installed, explore, explorer_root


@pytest.fixture
def taken():
    """A port that another program listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_command_serves_the_explorer_from_any_folder_on_this_machine_only(command, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A process that was started in the background of a shell ignores SIGINT, and hands that on to its children.
    listening = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", listening, *command, "explore", "nowhere", "--port", str(port), "--no-browser"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        deadline = time.monotonic() + 90
        lines = []
        while not any("explorer shows" in line for line in lines):
            assert time.monotonic() < deadline
            assert process.poll() is None, lines
            lines.append(process.stderr.readline())
        assert f"http://localhost:{port}/" in lines[-1]
        assert "There are no runs in nowhere yet: `tfcausal run " in lines[0]
        with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=10) as answer:
            assert answer.status == 200
        tables = [Path(f"/proc/net/tcp{version}") for version in ("", "6")]
        rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
        hosts = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
        assert hosts <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
    with pytest.raises(OSError, match=r"refused|errno"):
        urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr(
        explorer_command, "find_spec", lambda name: None if name == "plotly" else util.find_spec("json")
    )
    with pytest.raises(RunError, match=r"needs plotly, which is not installed.*pip install 'tfcausal\[explorer\]'"):
        check_installed()


def test_a_taken_port_and_a_file_are_refused_before_anything_starts(taken, tmp_path):
    with pytest.raises(InvalidArgument, match=f"a free port; received {taken}"):
        explore(tmp_path, port=taken, address="127.0.0.1", browser=False)
    with pytest.raises(InvalidArgument, match="from 1 to 65535; received 0"):
        explore(tmp_path, port=0, browser=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="a folder of runs, or a run"):
        explore(tmp_path / "file", browser=False)


def test_the_server_is_closed_to_the_network_by_its_settings():
    settings = tomllib.loads((explorer_root() / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["server"]["address"] == "localhost"
    assert settings["server"]["enableXsrfProtection"] is True
    assert settings["server"]["maxUploadSize"] <= 25
    assert settings["browser"]["gatherUsageStats"] is False
    assert {"light", "dark"} <= set(settings["theme"])


def test_an_explorer_that_is_not_there_says_where_it_was_expected(monkeypatch, tmp_path):
    monkeypatch.setattr(explorer_command, "__file__", str(tmp_path / "tfcausal" / "explorer_command.py"))
    with pytest.raises(RunError, match=r"was expected in .*share/tfcausal"):
        explorer_root()
