import signal
import socket
import tomllib
import urllib.request
from http.client import HTTPException
from importlib import util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tfcausal import explorer_command
from tfcausal.cli import app
from tfcausal.errors import InvalidArgument, RunError
from tfcausal.explorer_command import check_installed, explore, explorer_root


@pytest.fixture
def taken():
    """A port that another program listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_explorer_from_any_folder_on_this_machine_only(serving, tmp_path, ending):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ("explore", "nowhere", "--port", str(port), "--no-browser")
    with serving("explorer shows", *words, cwd=tmp_path, ending=ending) as (process, lines):
        assert f"http://localhost:{port}/" in lines[-1]
        assert "There are no runs in nowhere yet: `tfcausal run " in lines[0]
        for check in ("health", "script-health-check"):
            with urllib.request.urlopen(f"http://localhost:{port}/_stcore/{check}", timeout=30) as answer:
                assert (answer.status, answer.read()) == (200, b"ok")
        tables = [Path(f"/proc/net/tcp{version}") for version in ("", "6")]
        rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
        hosts = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
        assert hosts <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1
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


@pytest.fixture
def started(monkeypatch):
    """The commands and environments of the servers that were started; none is."""
    found = []

    class Server:
        def __init__(self, words, **settings):
            found.append((words, settings["env"]))

        def wait(self):
            return 0

        def poll(self):
            return 0

    monkeypatch.setattr(explorer_command.subprocess, "Popen", Server)
    monkeypatch.setattr(explorer_command, "_wait_for", lambda server, url: None)
    monkeypatch.delenv("TFCAUSAL_MODEL", raising=False)
    return found


@pytest.mark.parametrize("failure", [None, HTTPException("odd answer"), TimeoutError()])
def test_the_first_page_is_made_once_before_the_address_is_said_and_may_fail(started, monkeypatch, tmp_path, failure):
    happened = []

    def ask(url, seconds):
        happened.append(url)
        if failure is not None and "script" in url:
            raise failure

    monkeypatch.setattr(explorer_command, "_ask", ask)
    monkeypatch.setattr(explorer_command, "_wait_for", lambda server, url: ask(url, 1.0))
    assert explore(tmp_path, port=47813, browser=False, say=happened.append) == 0
    *asked, said = happened
    assert asked == [f"http://localhost:47813/_stcore/{name}" for name in ("health", "script-health-check")]
    assert "at http://localhost:47813/ " in said
    ((words, _),) = started
    assert words[words.index("--server.scriptHealthCheckEnabled") + 1] == "true"


def test_a_model_file_is_handed_over_in_the_environment_and_opens_its_page(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.keras").write_bytes(b"anything")
    runner = CliRunner()
    result = runner.invoke(app, ["explore", "model.keras", "--port", "47813", "--no-browser"])
    assert result.exit_code == 0
    assert "The explorer shows model.keras at http://localhost:47813/own_images " in result.stderr
    ((words, environment),) = started
    assert environment["TFCAUSAL_MODEL"] == str(tmp_path / "model.keras")
    assert environment["TFCAUSAL_RUNS"] == str(tmp_path / "runs")
    assert not any("model.keras" in word for word in words)
    assert words[words.index("--server.address") + 1] == "localhost"
    assert "--server.allowedHosts" not in words

    Path("folder.keras").mkdir()  # a folder of runs may be called like this
    assert runner.invoke(app, ["explore", "folder.keras", "--port", "47813", "--no-browser"]).exit_code == 0
    assert "TFCAUSAL_MODEL" not in started[-1][1]


@pytest.mark.parametrize(("name", "received"), [("gone.keras", "nothing there"), ("notes.txt", "a file `notes.txt`")])
def test_what_is_no_model_file_is_refused_before_anything_starts(started, tmp_path, name, received):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InvalidArgument, match=rf"expected a model file \(\.keras, \.h5, \.hdf5\); received {received}"):
        explore(tmp_path, browser=False, model=tmp_path / name)
    assert started == []


def test_the_network_sees_the_explorer_only_if_it_is_told_so(started, tmp_path):
    explore(tmp_path, port=47813, address="0.0.0.0", browser=False)
    ((words, _),) = started
    assert words[words.index("--server.address") + 1] == "0.0.0.0"
    assert words[words.index("--server.allowedHosts") + 1] == "*"


def test_the_server_is_closed_to_the_network_by_its_settings():
    settings = tomllib.loads((explorer_root() / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["server"]["address"] == "localhost"
    assert settings["server"]["allowedHosts"] == ["localhost", "127.0.0.1", "[::1]"]
    assert settings["server"]["enableXsrfProtection"] is True
    assert settings["server"]["maxUploadSize"] <= 25
    assert settings["browser"]["gatherUsageStats"] is False
    assert {"light", "dark"} <= set(settings["theme"])


def test_an_explorer_that_is_not_there_says_where_it_was_expected(monkeypatch, tmp_path):
    monkeypatch.setattr(explorer_command, "__file__", str(tmp_path / "tfcausal" / "explorer_command.py"))
    with pytest.raises(RunError, match=r"was expected in .*share/tfcausal"):
        explorer_root()
