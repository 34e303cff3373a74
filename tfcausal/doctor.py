"""What this machine has and what to set: the findings of `tfcausal doctor`. Imports no TensorFlow.

Reading is apart from judging: :func:`read_machine` and :func:`probe_tensorflow` read, the functions that end in
`_finding` or `_findings` are pure.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.table import Table
from rich.text import Text

State = Literal["ok", "note", "problem"]

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
BF16_VARIABLE = "TF_SET_ONEDNN_FPMATH_MODE"
_COST = (
    "Cost: rounding as AMX does it, on VGG16 and ResNet50 with random weights, moved logits by about 1 % of the "
    "largest and no prediction, but WBP maps correlated by only 0.91 to 0.93 with those of float32 (docs/saliency.md). "
    "Keep it the same for all runs that you compare."
)
_WITHOUT_AMX = ": on an AMD EPYC with avx512_bf16 the results were the same to the bit, without a gain in speed"
ONEDNN_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
MAIN_PACKAGES = {"tensorflow": "TensorFlow", "keras": "Keras", "numpy": "NumPy"}
QUICKSTART_MEMORY = 1.15  # GiB at the peak, measured by benchmarks/demo.py
SMALL_DISK = 1.0  # GiB
PROBE_TIMEOUT = 120.0  # seconds
_GIB = 1 << 30
_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}
_PROBE = """
import json, tensorflow as tf, keras
gpus = tf.config.list_physical_devices("GPU")
names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
print(json.dumps({"backend": keras.backend.backend(), "cuda": tf.test.is_built_with_cuda(), "gpus": names}))
"""


@dataclass(frozen=True)
class Finding:
    """One row of the diagnosis: what was looked at, what was found, and what to do or what it means."""

    name: str
    value: str
    state: State = "ok"  # note: something can be better; problem: tfcausal cannot be used like this
    advice: str = ""


@dataclass(frozen=True)
class Machine:
    """The machine, as far as the system tells; None where it does not. Memory is in bytes."""

    system: str  # Linux, Darwin or Windows
    processor: str | None = None
    flags: frozenset[str] | None = None  # features of the processor, as Linux spells them
    cores: int | None = None  # physical
    usable: int = 1  # processors on which this process may run
    quota: float | None = None  # processors whose time a control group grants
    memory: int | None = None
    available: int | None = None
    memory_limit: int | None = None  # what a control group grants
    nvidia: bool = False  # whether an NVIDIA device or its driver's command is there


@dataclass(frozen=True)
class TensorFlowProbe:
    """What TensorFlow says of itself; with an `error` it cannot be imported, and the rest counts for nothing."""

    error: str | None = None
    backend: str = "tensorflow"  # of Keras
    onednn: bool = False
    cuda: bool = False  # whether this build can use CUDA at all
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackageMetadata:
    """What tfcausal's own metadata say; requirements as in PEP 508."""

    version: str
    requires_python: str
    requirements: tuple[str, ...]
    extras: tuple[str, ...] = ()


def diagnose(folder: Path = Path()) -> list[Finding]:
    """Read this machine, and the folder where runs are to be made; takes as long as importing TensorFlow."""
    machine, probe, variables = read_machine(), probe_tensorflow(), dict(os.environ)
    return [
        *package_findings(read_metadata(), platform.python_version(), version_of),
        tensorflow_finding(probe, variables),
        *machine_findings(machine),
        gpu_finding(machine, probe, variables),
        onednn_finding(probe, variables),
        bf16_finding(machine, probe, variables),
        *folder_findings(folder),
    ]


def is_usable(findings: Sequence[Finding]) -> bool:
    """Whether none of the findings is a problem.

    Example:
        >>> is_usable([Finding("GPU", "none", "note")]), is_usable([Finding("Keras", "missing", "problem")])
        (True, False)
    """
    return all(finding.state != "problem" for finding in findings)


def to_json(findings: Sequence[Finding]) -> str:
    """The findings for machines: `usable`, and `findings` with name, value, state and advice."""
    return json.dumps({"usable": is_usable(findings), "findings": list(map(asdict, findings))}, indent=2)


def to_table(findings: Sequence[Finding]) -> Table:
    """The findings for people, one row each."""
    table = Table(caption="tfcausal can be used." if is_usable(findings) else "tfcausal cannot be used like this.")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column)
    for finding in findings:
        state = Text(finding.state, style=_COLOURS[finding.state])
        # As texts: the brackets of tensorflow[and-cuda] are not rich's.
        table.add_row(state, Text(finding.name), Text(finding.value), Text(finding.advice))
    return table


def package_findings(
    metadata: PackageMetadata | None, python: str, version_of: Callable[[str], str | None]
) -> list[Finding]:
    """Judge what is installed by what tfcausal asks for in its own metadata.

    Args:
        metadata: Of tfcausal; None if it is not installed.
        python: Version of Python.
        version_of: Gives the version of a distribution, or None if it is not installed.
    """
    if metadata is None:
        return [Finding("tfcausal", "not installed", "note", "What it requires is not known: pip install -e .")]
    supported = SpecifierSet(metadata.requires_python)
    findings = [
        _version_finding("Python", python, supported, f"Use a Python with {supported}."),
        Finding("tfcausal", metadata.version),
    ]
    bad: dict[str, State] = {}
    requirements = _requirements(metadata, extra="")
    others = [requirement for requirement in requirements if requirement.name not in MAIN_PACKAGES]
    for requirement in requirements:
        version, install = version_of(requirement.name), f"pip install '{requirement.name}{requirement.specifier}'"
        name = MAIN_PACKAGES.get(requirement.name)
        finding = _version_finding(name or requirement.name, version, requirement.specifier, install)
        if name:
            findings.append(finding)
        elif finding.state != "ok":
            bad[install] = finding.state
    state: State = "problem" if "problem" in bad.values() else "note" if bad else "ok"
    findings.append(
        Finding("Other packages", f"{len(others) - len(bad)} of {len(others)} as required", state, "; ".join(bad))
    )
    for extra in metadata.extras:
        absent = [item.name for item in _requirements(metadata, extra) if version_of(item.name) is None]
        value = f"not installed: {', '.join(absent)}" if absent else "installed"
        advice = f"Only if you need it: pip install 'tfcausal[{extra}]'" if absent else ""
        findings.append(Finding(f"Extra {extra}", value, "ok", advice))
    return findings


def _requirements(metadata: PackageMetadata, extra: str) -> list[Requirement]:
    """What tfcausal itself requires (`extra` is empty), or what an extra adds."""
    found = []
    for requirement in map(Requirement, metadata.requirements):
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        added = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        if (added and not always) if extra else always:
            found.append(requirement)
    return found


def _version_finding(name: str, version: str | None, supported: SpecifierSet, advice: str) -> Finding:
    if version is None:
        return Finding(name, "not installed", "problem", advice)
    if supported.contains(version, prereleases=True):
        return Finding(name, version)
    return Finding(name, version, "note", f"Outside of {supported}, which is what the tests run on. {advice}")


def tensorflow_finding(probe: TensorFlowProbe, variables: Mapping[str, str]) -> Finding:
    """Whether TensorFlow starts, and whether Keras uses it."""
    if probe.error is None and probe.backend == "tensorflow":
        return Finding("TensorFlow starts", "yes, and Keras uses it")
    other = probe.error is None or "KERAS_BACKEND" in variables
    backend = "export KERAS_BACKEND=tensorflow (or set it in ~/.keras/keras.json)"
    value = f"yes, but Keras uses {probe.backend}" if probe.error is None else f"no: {probe.error}"
    return Finding(
        "TensorFlow starts", value, "problem", backend if other else "Install it again, in a new environment."
    )


def machine_findings(machine: Machine) -> list[Finding]:
    """Processor, its features, cores and memory, with what a container takes away."""
    flags, quota = machine.flags, machine.quota
    features = "not known on this system" if flags is None else ", ".join(f for f in FEATURES if f in flags) or "none"
    cores = Finding("Cores", f"{machine.cores or 'unknown'} physical; {machine.usable} for this process")
    if quota is not None and quota < machine.usable:
        advice = f"export TF_NUM_INTRAOP_THREADS={max(1, int(quota))}: TensorFlow would start {machine.usable} threads"
        cores = Finding("Cores", f"{cores.value}; the time of {quota:g} granted", "note", advice)
    processor = Finding("Processor", machine.processor or "unknown")
    return [processor, Finding("Its features", features), cores, _memory_finding(machine)]


def _memory_finding(machine: Machine) -> Finding:
    free, limit = machine.available, machine.memory_limit
    amounts = {"in all": machine.memory, "available": free, "at most for this process": limit}
    value = "; ".join(f"{size / _GIB:.1f} GiB {name}" for name, size in amounts.items() if size is not None)
    least = min((size for size in (free, limit) if size is not None), default=None)
    if least is None or least / _GIB >= QUICKSTART_MEMORY:
        return Finding("Memory", value or "unknown")
    return Finding("Memory", value, "note", f"The quickstart alone takes {QUICKSTART_MEMORY} GiB.")


def gpu_finding(machine: Machine, probe: TensorFlowProbe, variables: Mapping[str, str]) -> Finding:
    """The GPUs that TensorFlow sees, or why it sees none although one is there."""
    if probe.gpus:
        return Finding("GPUs", ", ".join(probe.gpus))
    if not machine.nvidia or probe.error is not None:
        return Finding("GPUs", "none")
    value = "TensorFlow sees none, but an NVIDIA driver is there"
    hidden = variables.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and (not hidden.strip() or hidden.strip().startswith("-")):
        return Finding("GPUs", value, "note", f"CUDA_VISIBLE_DEVICES={hidden!r} hides it: unset it.")
    if machine.system == "Windows":
        return Finding("GPUs", value, "note", "TensorFlow uses GPUs on Linux only: install tfcausal in WSL2.")
    why = "This TensorFlow lacks the CUDA libraries" if probe.cuda else "This TensorFlow was built without CUDA"
    return Finding("GPUs", value, "note", f"{why}: pip install 'tensorflow[and-cuda]', in the version above.")


def onednn_finding(probe: TensorFlowProbe, variables: Mapping[str, str]) -> Finding:
    """Whether TensorFlow computes with oneDNN."""
    if probe.error is not None:
        return Finding("oneDNN", "unknown")
    if probe.onednn:
        return Finding("oneDNN", "on")
    value = variables.get(ONEDNN_VARIABLE)
    if value is not None:
        return Finding("oneDNN", f"off by {ONEDNN_VARIABLE}={value}", "note", f"unset {ONEDNN_VARIABLE}")
    return Finding("oneDNN", "off, TensorFlow's choice for this processor")


def bf16_finding(machine: Machine, probe: TensorFlowProbe, variables: Mapping[str, str]) -> Finding:
    """Whether the convolutions of float32 models can be computed faster in bfloat16, and at what cost."""
    value = variables.get(BF16_VARIABLE, "")
    found = f"{BF16_VARIABLE}={value}" if value else f"{BF16_VARIABLE} not set"
    if machine.flags is None:
        return Finding("BF16", f"{found}; processor features not known", "ok", "Only processors with AMX gain from it.")
    if not {"amx_bf16", "amx_tile"} <= machine.flags:
        measured = "avx512_bf16" in machine.flags
        advice = f"Nothing to gain without AMX{_WITHOUT_AMX if measured else ''}."
        return Finding("BF16", f"{found}; no AMX", "note" if value else "ok", advice)
    found += "; the processor has AMX"
    if not probe.onednn:
        return Finding("BF16", found, "note", "It counts only with oneDNN, see above.")
    if value == "BF16":
        return Finding("BF16", found, "ok", f"In use. {_COST}")
    advice = f"Before starting: export {BF16_VARIABLE}=BF16, 1.7 times the speed of float32 measured with AMX. {_COST}"
    return Finding("BF16", found, "note", f"TensorFlow takes no value but BF16. {advice}" if value else advice)


def folder_findings(folder: Path) -> list[Finding]:
    """Free space, and whether `runs/` can be written in the folder."""
    free = shutil.disk_usage(folder).free / _GIB
    room: tuple[State, str] = ("note", "Runs keep models and maps: make room.") if free < SMALL_DISK else ("ok", "")
    space = Finding("Free disk here", f"{free:.1f} GiB", *room)
    runs = folder / "runs"
    there = runs.exists()
    if os.access(runs if there else folder, os.W_OK | os.X_OK) and (runs.is_dir() or not there):
        return [space, Finding("runs/", "can be written" if there else "not there yet; can be made")]
    return [space, Finding("runs/", "cannot be written", "note", "tfcausal run ... --runs FOLDER, a folder of yours")]


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_metadata() -> PackageMetadata | None:
    """Read what `pyproject.toml` became when tfcausal was installed; None if it was not."""
    try:
        fields = importlib.metadata.metadata("tfcausal")
    except importlib.metadata.PackageNotFoundError:
        return None
    extras = [extra for extra in fields.get_all("Provides-Extra") or () if extra != "dev"]
    requirements = importlib.metadata.requires("tfcausal") or ()
    return PackageMetadata(fields["Version"], fields["Requires-Python"], tuple(requirements), tuple(extras))


def probe_tensorflow(python: str = sys.executable, timeout: float = PROBE_TIMEOUT) -> TensorFlowProbe:
    """Import TensorFlow and Keras in a process of its own: one that crashes does not take the diagnosis with it."""
    try:
        # -P: a folder named keras in the current folder is not Keras.
        result = subprocess.run(
            [python, "-P", "-c", _PROBE],
            capture_output=True,
            check=False,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
            errors="replace",
            text=True,
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return TensorFlowProbe(error=type(error).__name__)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        killed = f"killed by {signal.Signals(-result.returncode).name}; " if result.returncode < 0 else ""
        return TensorFlowProbe(error=killed + lines[-1])
    said = json.loads(result.stdout.strip().splitlines()[-1])
    onednn = "oneDNN custom operations are on" in result.stderr
    return TensorFlowProbe(None, said["backend"], onednn, said["cuda"], tuple(said["gpus"]))


def read_machine(root: Path = Path("/"), system: str = platform.system()) -> Machine:
    """Read the machine; under `root` are `proc`, `sys` and `dev`, which only Linux has."""
    cpuinfo = read_text(root / "proc/cpuinfo") if system == "Linux" else None
    lines = (line.partition(":") for line in (read_text(root / "proc/meminfo") or "").splitlines())
    memory = {key: int(value.split()[0]) * 1024 for key, _, value in lines if key.startswith("Mem")}
    files = ("memory.max", "memory.limit_in_bytes")
    limits = [text for file in files for text in _control_group(root, "memory", file)]
    # Version 2 writes "max" where there is no limit, version 1 a number that no memory has.
    least = min((int(text) for text in limits if text.isdigit()), default=None)
    limited = least is not None and least < memory.get("MemTotal", least + 1)
    names = _cpuinfo_values(cpuinfo, "model name") or [platform.processor() or platform.machine()]
    cores = zip(_cpuinfo_values(cpuinfo, "physical id"), _cpuinfo_values(cpuinfo, "core id"), strict=False)
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        system=system,
        processor=names[0] or None,
        flags=processor_flags(cpuinfo),
        cores=len(set(cores)) or None,
        usable=len(affinity(0)) if affinity else os.cpu_count() or 1,
        quota=_quota(root),
        memory=memory.get("MemTotal"),
        available=memory.get("MemAvailable"),
        memory_limit=least if limited else None,
        nvidia=(root / "dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None,
    )


def read_text(path: Path) -> str | None:
    """The text of a file of the system, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _cpuinfo_values(cpuinfo: str | None, key: str) -> list[str]:
    pairs = (line.partition(":") for line in (cpuinfo or "").splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def processor_flags(cpuinfo: str | None) -> frozenset[str] | None:
    """Features of the processor in the text of `/proc/cpuinfo`; None if it tells none."""
    values = _cpuinfo_values(cpuinfo, "flags")
    return frozenset(values[0].split()) if values else None


def _control_group(root: Path, controller: str, file: str) -> list[str]:
    """What one file says in this process's control group and in those around it, in versions 1 and 2."""
    texts = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = PurePosixPath(path.lstrip("/"))
        texts += [read_text(base / folder / file) for folder in (group, *group.parents)]
    return [text.strip() for text in texts if text is not None]


def _quota(root: Path) -> float | None:
    """Processors whose time is granted, the least over all control groups."""
    pairs = [text.split() for text in _control_group(root, "cpu", "cpu.max")]
    times, periods = (_control_group(root, "cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    pairs += [[time, period] for time, period in zip(times, periods, strict=False)]
    return min((int(time) / int(period) for time, period in pairs if time.isdigit()), default=None)
