import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tfcausal import doctor
from tfcausal.doctor import BF16_VARIABLE, Finding, Machine, PackageMetadata, TensorFlowProbe

GIB = 1 << 30
AMX = frozenset({"avx512_bf16", "amx_tile", "amx_bf16"})
READY = TensorFlowProbe(onednn=True, cuda=True)
CPUINFO = "".join(
    f"processor\t: {processor}\nmodel name\t: Some CPU @ 2: fast\nphysical id\t: {package}\ncore id\t\t: {core}\n"
    "flags\t\t: fpu avx2 avx512f amx_bf16 amx_tile\n\n"
    for processor, (package, core) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)] * 2)
)
METADATA = PackageMetadata(
    version="0.1.0",
    requires_python=">=3.11,<3.14",
    requirements=(
        "tensorflow<2.22,>=2.21",
        "keras>=3.15,<4",
        "zarr>=3",
        "pillow>=10.3",
        'old-only>=1; python_version < "3"',
        'tf-keras-vis>=0.8; extra == "cam"',
    ),
    extras=("cam",),
)
INSTALLED = {"tensorflow": "2.21.0", "keras": "3.15.1", "zarr": "3.1", "pillow": "11.0"}


def machine_at(root, files, system="Linux"):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return doctor.read_machine(root, system)


def bf16(flags, value=None, onednn=True):
    variables = {} if value is None else {BF16_VARIABLE: value}
    return doctor.bf16_finding(Machine("Linux", flags=flags), TensorFlowProbe(onednn=onednn), variables)


def packages(installed, python="3.11.7"):
    return {finding.name: finding for finding in doctor.package_findings(METADATA, python, installed.get)}


def test_reads_a_linux_machine(tmp_path):
    files = {"proc/cpuinfo": CPUINFO, "proc/meminfo": "MemTotal: 2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n"}
    machine = machine_at(tmp_path, {**files, "dev/nvidia0": ""})
    assert machine.processor == "Some CPU @ 2: fast"
    assert machine.flags == {"fpu", "avx2", "avx512f", "amx_bf16", "amx_tile"}
    assert machine.cores == 4, "eight threads on four cores of two packages"
    assert (machine.memory, machine.available) == (2048 * 1024, 1024 * 1024)
    assert (machine.quota, machine.memory_limit) == (None, None)
    assert machine.nvidia


def test_features_are_unknown_elsewhere_than_on_linux(tmp_path):
    machine = machine_at(tmp_path, {"proc/cpuinfo": CPUINFO}, system="Darwin")
    assert machine.flags is None
    assert doctor.machine_findings(machine)[1].value == "not known on this system"
    assert "not known" in bf16(None).value
    assert bf16(None).state == "ok"


@pytest.mark.parametrize(
    ("groups", "files", "quota", "limit"),
    [
        (
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/memory.max": "1048576"},
            1.5,
            1 << 20,
        ),
        ("0::/\n", {"cpu.max": "300000 100000\n", "memory.max": "max\n"}, 3.0, None),
        ("0::/a\n", {"a/memory.max": "2097152", "memory.max": "1048576"}, None, 1 << 20),
        (
            "4:memory:/x\n2:cpu,cpuacct:/x\n0::/\n",
            {
                "cpu/x/cpu.cfs_quota_us": "50000",
                "cpu/x/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/x/memory.limit_in_bytes": "1048576",
            },
            0.5,
            1 << 20,
        ),
        (
            "2:cpu:/\n4:memory:/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
    ],
)
def test_limits_of_control_groups(tmp_path, groups, files, quota, limit):
    files = {f"sys/fs/cgroup/{path}": text for path, text in files.items()}
    total = {"proc/self/cgroup": groups, "proc/meminfo": "MemTotal: 4194304 kB\n"}
    machine = machine_at(tmp_path, {**files, **total})
    assert (machine.quota, machine.memory_limit) == (quota, limit)


def test_a_container_with_less_time_than_processors_is_told_to_take_fewer_threads():
    cores = doctor.machine_findings(Machine("Linux", cores=4, usable=8, quota=2.5))[2]
    assert cores == Finding(
        "Cores",
        "4 physical; 8 for this process; the time of 2.5 granted",
        "note",
        "export TF_NUM_INTRAOP_THREADS=2: TensorFlow would start 8 threads",
    )
    assert doctor.machine_findings(Machine("Linux", cores=4, usable=8, quota=8.0))[2].state == "ok"


@pytest.mark.parametrize(
    ("available", "limit", "state"), [(8, None, "ok"), (1, None, "note"), (8, 1, "note"), (None, None, "ok")]
)
def test_memory_is_enough_for_the_quickstart_or_not(available, limit, state):
    available, limit = (None if amount is None else amount * GIB for amount in (available, limit))
    finding = doctor.machine_findings(Machine("Linux", available=available, memory_limit=limit))[3]
    assert finding.state == state
    assert ("1.15 GiB" in finding.advice) == (state == "note")


def test_amx_without_the_variable_is_told_what_to_set_and_what_it_costs():
    finding = bf16(AMX)
    assert finding.state == "note"
    assert f"export {BF16_VARIABLE}=BF16" in finding.advice
    assert "1.7 times" in finding.advice
    assert "Cost" in finding.advice


def test_amx_with_the_variable_is_told_what_it_costs():
    finding = bf16(AMX, "BF16")
    assert finding.state == "ok"
    assert finding.advice.startswith("In use. Cost")


def test_a_value_that_tensorflow_ignores_is_noted():
    finding = bf16(AMX, "bf16")
    assert finding.state == "note"
    assert "no value but BF16" in finding.advice


def test_without_onednn_the_variable_does_nothing():
    assert "only with oneDNN" in bf16(AMX, "BF16", onednn=False).advice


@pytest.mark.parametrize(("value", "state"), [(None, "ok"), ("BF16", "note")])
@pytest.mark.parametrize("flags", [frozenset({"avx2"}), frozenset({"avx512_bf16"}), frozenset({"amx_tile"})])
def test_without_amx_there_is_nothing_to_gain(flags, value, state):
    finding = bf16(flags, value)
    assert finding.state == state
    assert finding.advice.startswith("Nothing to gain")
    assert ("AMD EPYC" in finding.advice) == ("avx512_bf16" in flags)
    assert "export" not in finding.advice


@pytest.mark.parametrize(
    ("probe", "variables", "value", "state"),
    [
        (READY, {}, "on", "ok"),
        (TensorFlowProbe(), {}, "off, TensorFlow's choice for this processor", "ok"),
        (TensorFlowProbe(), {"TF_ENABLE_ONEDNN_OPTS": "0"}, "off by TF_ENABLE_ONEDNN_OPTS=0", "note"),
        (TensorFlowProbe(error="x"), {}, "unknown", "ok"),
    ],
)
def test_onednn(probe, variables, value, state):
    finding = doctor.onednn_finding(probe, variables)
    assert (finding.value, finding.state) == (value, state)


@pytest.mark.parametrize(
    ("machine", "probe", "variables", "text"),
    [
        (Machine("Linux", nvidia=True), READY, {}, "lacks the CUDA libraries: pip install 'tensorflow[and-cuda]'"),
        (Machine("Linux", nvidia=True), TensorFlowProbe(cuda=False), {}, "built without CUDA"),
        (Machine("Windows", nvidia=True), READY, {}, "WSL2"),
        (Machine("Linux", nvidia=True), READY, {"CUDA_VISIBLE_DEVICES": "-1"}, "unset it"),
        (Machine("Linux", nvidia=True), READY, {"CUDA_VISIBLE_DEVICES": ""}, "unset it"),
        (Machine("Linux", nvidia=True), READY, {"CUDA_VISIBLE_DEVICES": "0"}, "and-cuda"),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see(machine, probe, variables, text):
    finding = doctor.gpu_finding(machine, probe, variables)
    assert finding.state == "note"
    assert text in finding.advice


def test_gpus_that_are_there_and_that_are_not():
    seen = TensorFlowProbe(cuda=True, gpus=("A100", "A100"))
    assert doctor.gpu_finding(Machine("Linux", nvidia=True), seen, {}) == Finding("GPUs", "A100, A100")
    assert doctor.gpu_finding(Machine("Linux"), READY, {}) == Finding("GPUs", "none")


def test_packages_as_required():
    found = packages(INSTALLED)
    assert found.pop("Extra cam") == Finding(
        "Extra cam", "not installed: tf-keras-vis", "ok", "Only if you need it: pip install 'tfcausal[cam]'"
    )
    assert {name: finding.value for name, finding in found.items()} == {
        "Python": "3.11.7",
        "tfcausal": "0.1.0",
        "TensorFlow": "2.21.0",
        "Keras": "3.15.1",
        "Other packages": "2 of 2 as required",
    }
    assert {(finding.state, finding.advice) for finding in found.values()} == {("ok", "")}
    assert packages({**INSTALLED, "tf-keras-vis": "0.8.7"})["Extra cam"] == Finding("Extra cam", "installed")


def test_packages_out_of_range_are_notes_and_missing_ones_are_problems():
    found = packages({"tensorflow": "2.20.0", "zarr": "2.0"}, python="3.14.0")
    assert found["Python"].state == "note"
    assert found["TensorFlow"].state == "note"
    assert "pip install 'tensorflow<2.22,>=2.21'" in found["TensorFlow"].advice
    assert found["Keras"] == Finding("Keras", "not installed", "problem", "pip install 'keras<4,>=3.15'")
    assert found["Other packages"] == Finding(
        "Other packages", "0 of 2 as required", "problem", "pip install 'zarr>=3'; pip install 'pillow>=10.3'"
    )
    assert packages({**INSTALLED, "zarr": "2.0"})["Other packages"].state == "note"


def test_a_tfcausal_that_is_not_installed_is_noted():
    (finding,) = doctor.package_findings(None, "3.11.7", INSTALLED.get)
    assert (finding.name, finding.state) == ("tfcausal", "note")


@pytest.mark.parametrize(
    ("probe", "variables", "value", "advice"),
    [
        (TensorFlowProbe(error="ImportError: no"), {}, "no: ImportError: no", "Install it again"),
        (TensorFlowProbe(error="no torch"), {"KERAS_BACKEND": "torch"}, "no: no torch", "KERAS_BACKEND=tensorflow"),
        (TensorFlowProbe(backend="jax"), {}, "yes, but Keras uses jax", "KERAS_BACKEND=tensorflow"),
    ],
)
def test_a_tensorflow_that_cannot_be_used_is_a_problem(probe, variables, value, advice):
    finding = doctor.tensorflow_finding(probe, variables)
    assert (finding.value, finding.state) == (value, "problem")
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo first >&2; echo 'ImportError: broken' >&2; exit 1", "ImportError: broken"),
        ("exit 1", "no message"),
        ("kill -ILL $$", "killed by SIGILL; no message"),
        ("exec sleep 30", "TimeoutExpired"),
    ],
)
def test_a_tensorflow_that_crashes_does_not_take_the_diagnosis_with_it(tmp_path, script, error):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    timeout = 0.5 if "sleep" in script else 60
    assert doctor.probe_tensorflow(str(python), timeout=timeout) == TensorFlowProbe(error=error)


def test_the_folder(tmp_path, monkeypatch):
    def found():
        return doctor.folder_findings(tmp_path)[1]

    assert found() == Finding("runs/", "not there yet; can be made")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("a file")
    assert found().state == "note"
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").mkdir()
    assert found().value == "can be written"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: Path(path) != tmp_path / "runs")
    assert found().value == "cannot be written"
    assert "--runs FOLDER" in found().advice


@pytest.mark.parametrize(("free", "state"), [(0.5, "note"), (2, "ok")])
def test_free_disk(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free * GIB))
    assert doctor.folder_findings(tmp_path)[0].state == state


def test_what_is_printed():
    findings = [Finding("GPUs", "none", "note", "pip install 'tensorflow[and-cuda]'"), Finding("Keras", "3", "problem")]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(doctor.to_table(findings))
    text = capture.get()
    assert "tensorflow[and-cuda]" in text, "not taken for rich's markup"
    assert "tfcausal cannot be used like this." in text
    result = json.loads(doctor.to_json(findings))
    assert result["usable"] is False
    assert result["findings"][1] == {"name": "Keras", "value": "3", "state": "problem", "advice": ""}


def test_this_machine(tmp_path, monkeypatch):
    (tmp_path / "keras.py").write_text("raise ImportError('a module of the current folder is not Keras')")
    monkeypatch.chdir(tmp_path)
    findings = {finding.name: finding for finding in doctor.diagnose()}
    assert doctor.is_usable(list(findings.values()))
    assert findings["TensorFlow"].value.startswith("2.")
    assert findings["TensorFlow starts"].value == "yes, and Keras uses it"
    assert findings["oneDNN"].value != "unknown"
    assert BF16_VARIABLE in findings["BF16"].value
    assert "Extra dev" not in findings
    assert [path.name for path in tmp_path.iterdir()] == ["keras.py"]


def test_importing_the_module_imports_no_tensorflow():
    code = "import sys, tfcausal.doctor; sys.exit(any(m.split('.')[0] in ('tensorflow', 'keras') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
