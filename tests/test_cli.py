import subprocess
import sys

import pytest
import yaml

import tfcausal


def test_help_and_public_names_do_not_import_tensorflow(command):
    code = (
        "import sys, tfcausal, tfcausal.cli; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(tfcausal.cli.app, ['run', '--help']).exit_code == 0; dir(tfcausal); "
        "sys.exit(any(name.split('.')[0] in ('tensorflow', 'keras', 'matplotlib', 'pandas') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_shows_examples(run_command):
    text = run_command("run", "--help").stdout
    for example in ("tfcausal run configs/quickstart.yaml", "--set training.epochs=5", "--resume runs/quickstart"):
        assert example in text


def test_version(run_command):
    assert run_command("--version").stdout == f"tfcausal {tfcausal.__version__}\n"


def test_dry_run_prints_the_resolved_configuration_and_leaves_nothing(run_command, small_config, tmp_path):
    result = run_command(
        "run", small_config, "--dry-run", "--set", "models.ppi.sharpness=7", "--name", "2024", cwd=tmp_path
    )
    resolved = yaml.safe_load(result.stdout)
    assert resolved["name"] == "2024"
    assert resolved["models"]["ppi"]["sharpness"] == 7
    assert resolved["models"]["ppi"]["threshold"] == 0.25
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run"], "Give a configuration"),
        (["run", "CONFIG", "--set", "training.epoch=2"], "training.epoch"),
        (["run", "CONFIG", "--set", "training.epoch=2"], "Did you mean `epochs`?"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "--resume", "missing"], "expected a run directory"),
        (["run", "CONFIG", "--resume", "runs/x"], "leave out CONFIG, --set, --name and --runs"),
        (["run", "CONFIG", "--set", "data={source: image_folder, path: nowhere}"], "nowhere"),
        (["run", "CONFIG", "--set", "training.batch_size=81"], "80 training images"),
    ],
)
def test_bad_input_is_an_error_of_our_own_without_a_traceback(run_command, small_config, tmp_path, words, text):
    words = [str(small_config) if word == "CONFIG" else word for word in words]
    result = run_command(*words, check=False, cwd=tmp_path)
    assert result.returncode != 0
    assert text in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_run_directory_that_exists_is_not_overwritten(run_command, small_config, small_run):
    path, _ = small_run
    before = (path / "metrics.json").read_bytes()
    result = run_command("run", small_config, "--runs", path.parent, check=False)
    assert result.returncode == 1
    for text in ("holds a run that is complete", "--name OTHER"):
        assert text in result.stderr
    assert (path / "metrics.json").read_bytes() == before


def test_resuming_a_complete_run_shows_its_table(run_command, small_run):
    path, first = small_run
    result = run_command("run", "--resume", path)
    assert "is complete" in result.stdout
    table = first.stdout[first.stdout.index("┏") : first.stdout.index("Report:")]
    assert table in result.stdout


def test_the_names_of_the_package_exist():
    for name in tfcausal.__all__:
        assert getattr(tfcausal, name)
    with pytest.raises(AttributeError, match="no attribute 'WPB'"):
        _ = tfcausal.WPB
