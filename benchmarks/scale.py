"""Many images by blocks: throughput of one process and of Ray's actors, and memory over 100,000 images.

Every measurement is one command, `tfcausal explain|effects ... --engine ...`, with the resident memory of its processes
sampled while it runs. The first table explains images of 224x224 with VGG16 (without pretrained weights), in one
process with all cores, then by Ray with one and with two actors; all of it several times in turn, and the median
counts. Its images per second are those between the first finished block of every worker and the last one, without the
start; the whole time is beside it. The limit is for two actors: 0.8 of the throughput of the one process. The second
table measures effects in half of the images in the same way: of 8 concepts of block5_conv3, in images as they are,
masked, and attacked by FGSM. The third explains small images from a parquet file, made for it: the memory at a tenth of
the way and at the end. At last, how many blocks a second the driver hands out to actors that do nothing with them: the
bound of many workers.

.venv/bin/python benchmarks/scale.py [--images 128] [--rounds 3] [--many 100000] [--small]
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from rich.console import Console
from rich.table import Table
from side_by_side import RESULTS

from tfcausal.scale.blocks import Block
from tfcausal.scale.engine import Engine, run_blocks

COMMAND = str(Path(sys.executable).parent / "tfcausal")
ENGINES = {
    "one process": ["--engine", "local"],
    "Ray, 1 actor": ["--engine", "ray", "--workers", "1"],
    "Ray, 2 actors": ["--engine", "ray", "--workers", "2"],
}
LIMIT = 0.8
PLACES = {"driver": "the driver", "actors": "the largest actor", "ray": "Ray's own processes"}
SECONDS_BETWEEN_SAMPLES = 0.25
ROWS = {"explain": "explanations.parquet", "effects": "answers.parquet"}
EFFECTS = {"vgg16": ["block5_conv3", "8"], "small": ["conv2d_1", "8"]}
MODEL = """
import sys, keras
keras.utils.set_random_seed(0)
if sys.argv[1] == "vgg16":
    model = keras.applications.VGG16(weights=None)
else:
    size = int(sys.argv[3])
    x = inputs = keras.Input((size, size, 3))
    for filters in (16, 32):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))
model.save(sys.argv[2])
"""


@dataclass
class Measured:
    """One command: how fast, and resident memory in MiB."""

    engine: str
    images: int
    images_per_second: float
    seconds: float
    memory: dict[str, dict[str, float]] = field(default_factory=lambda: {name: {} for name in PLACES})


def processes(driver: int) -> dict[int, tuple[int, str, float]]:
    """The driver and what it has started, by number: parent, name and resident MiB."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            name = (folder / "cmdline").read_text().replace("\0", " ")
            pages = int((folder / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        found[int(folder.name)] = (parent, name, pages * 4096 / 2**20)
    ours = {driver}
    while more := {number for number, (parent, _, _) in found.items() if parent in ours} - ours:
        ours |= more
    return {number: found[number] for number in ours if number in found}


def resident(driver: int) -> dict[str, float]:
    """MiB of the driver, of the largest actor, and of Ray's own processes together."""
    memory = dict.fromkeys(PLACES, 0.0)
    for number, (_, name, size) in processes(driver).items():
        if number == driver:
            memory["driver"] = size
        elif name.startswith("ray::_Actor"):
            memory["actors"] = max(memory["actors"], size)
        else:
            memory["ray"] += size
    return memory


def measure(engine: str, words: list[str], images: int, block: int, output: Path) -> Measured:
    command = [COMMAND, *words, *ENGINES[engine], "--block", str(block), "--output", str(output)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    samples: list[tuple[float, dict[str, float]]] = []
    blocks = -(-images // block)
    rows = output / ROWS[words[0]]
    while process.poll() is None:
        done = len(list(rows.glob("part-*"))) if rows.is_dir() else 0
        samples.append((done / blocks, resident(process.pid)))
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    seconds = time.perf_counter() - begin
    said, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{said}{errors}")
    written = sorted(path.stat().st_mtime for path in rows.glob("part-*"))
    first = 2 if engine.endswith("2 actors") else 1
    rate = (len(written) - first) * block / (written[-1] - written[first - 1])
    # Of the start and of the end, when the workers are not there, nothing is told.
    worker = "actors" if "Ray" in engine else "driver"
    at_work = [(share, memory) for share, memory in samples if share and memory[worker]]
    begun = next((memory for share, memory in at_work if share >= 0.1), at_work[-1][1])
    measured = Measured(engine, images, rate, seconds)
    for name, values in measured.memory.items():
        values |= {"at 10 %": begun[name], "at 100 %": at_work[-1][1][name]}
        values["peak"] = max(memory[name] for _, memory in samples)
    return measured


def median_of(rounds: list[Measured]) -> Measured:
    """The round with the median throughput."""
    return sorted(rounds, key=lambda measured: measured.images_per_second)[(len(rounds) - 1) // 2]


def in_turn(rounds: int, words: list[str], images: int, block: int, folder: Path) -> list[Measured]:
    """The engines one after the other, several times; the median of each, and the range of the ratios on the screen."""
    every: dict[str, list[Measured]] = {engine: [] for engine in ENGINES}
    for number in range(rounds):
        for place, engine in enumerate(ENGINES):
            every[engine].append(measure(engine, words, images, block, folder / f"{words[0]}_{number}_{place}"))
    one, *_, two = ([measured.images_per_second for measured in of_engine] for of_engine in every.values())
    ratios = [own / other for own, other in zip(two, one, strict=True)]
    print(f"{words[0]}: two actors against one process, round by round:", ", ".join(f"{ratio:.2f}" for ratio in ratios))
    return [median_of(of_engine) for of_engine in every.values()]


def driver_blocks_per_second(blocks: int = 4000, names: int = 1024) -> float:
    """How many blocks with the names of that many images the driver hands out to two actors that do nothing."""
    finished: list[float] = []
    given = (
        Block(index, index * names, (index + 1) * names, tuple(f"{index:06}/{n:06}.jpg" for n in range(names)))
        for index in range(blocks)
    )

    def note(block: Block, result: None) -> None:
        finished.append(time.perf_counter())

    run_blocks(lambda: lambda block: None, given, note, Engine("ray", 2))
    return (len(finished) - 100) / (finished[-1] - finished[99])


def picture(random: np.random.Generator, size: int, kind: str) -> bytes:
    coarse = random.integers(0, 256, (max(2, size // 8), max(2, size // 8), 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


def write_files(folder: Path, count: int, size: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        (folder / f"{number:06}.jpg").write_bytes(picture(random, size, "JPEG"))
    return folder


def write_table(path: Path, count: int, size: int) -> Path:
    random, schema = np.random.default_rng(0), pyarrow.schema([("image", pyarrow.binary())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, count, 1000):
            rows = [picture(random, size, "PNG") for _ in range(min(1000, count - first))]
            writer.write_table(pyarrow.table({"image": rows}, schema))
    return path


def write_model(path: Path, name: str, size: int) -> Path:
    subprocess.run([sys.executable, "-c", MODEL, name, str(path), str(size)], check=True, capture_output=True)
    return path


def show(title: str, results: list[Measured]) -> None:
    speed = Table("", "images/s", "of one process", "whole time", title=title)
    memory = Table("resident MiB", "", "at 10 %", "at 100 %", "peak")
    for result in results:
        ratio = result.images_per_second / results[0].images_per_second
        speed.add_row(result.engine, f"{result.images_per_second:.2f}", f"{ratio:.2f}", f"{result.seconds:.0f} s")
        for place, values in result.memory.items():
            if values["peak"]:
                memory.add_row(result.engine, PLACES[place], *(f"{value:.0f}" for value in values.values()))
    Console().print(speed, memory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="images of 224x224 for the throughput")
    parser.add_argument("--rounds", type=int, default=3, help="how often the throughput is measured")
    parser.add_argument("--many", type=int, default=100_000, help="small images for the memory")
    parser.add_argument("--small", action="store_true", help="a small network and few images, to try the script")
    chosen = parser.parse_args()
    images, many, rounds = (64, 4000, 1) if chosen.small else (chosen.images, chosen.many, chosen.rounds)
    name, size = ("small", 64) if chosen.small else ("vgg16", 224)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pixels = ["--pixels", "0", "255"]
        large, files = write_model(folder / "large.keras", name, size), write_files(folder / "files", images, size)
        words = ["explain", str(large), str(files), *pixels, "--reducer", "sum", "--option", "batch_size=4"]
        fast = in_turn(rounds, words, images, 4, folder)
        show(f"{images} images of {size}x{size}, {name}, WBP", fast)
        layer, concepts = EFFECTS[name]
        settings = {"levels": f"[{layer}]", "autoencoder.concepts": concepts, "autoencoder.epochs": "1", "maps": "null"}
        words = ["effects", str(large), str(files), *pixels, "--output", str(folder / "concepts"), "--set", "images=8"]
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        subprocess.run([COMMAND, *words], check=True, capture_output=True)
        half = write_files(folder / "half", images // 2, size)
        words = ["effects", str(large), str(half), "--concepts", str(folder / "concepts")]
        causal = in_turn(rounds, words, images // 2, 4, folder)
        show(f"Effects of {concepts} concepts in {images // 2} images of {size}x{size}, {name}", causal)
        small, table = write_model(folder / "small.keras", "small", 16), write_table(folder / "t.parquet", many, 16)
        words = ["explain", str(small), str(table), *pixels, "--reducer", "sum"]
        flat = [
            measure(engine, words, many, 500, folder / f"memory_{place}")
            for place, engine in enumerate(("one process", "Ray, 2 actors"))
        ]
        show(f"{many} images of 16x16 from a parquet file, small network, WBP", flat)
    driver = driver_blocks_per_second(400 if chosen.small else 4000)
    print(f"The driver hands out {driver:.0f} blocks of 1024 names a second.")
    if chosen.small:
        return 0
    ratio = fast[-1].images_per_second / fast[0].images_per_second
    met = ratio >= LIMIT
    print(f"Two actors: {ratio:.2f} of one process; the limit is {LIMIT}: {'met' if met else 'missed'}.")
    versions = {package: version(package) for package in ("tensorflow", "keras", "numpy", "ray", "pyarrow", "zarr")}
    result = {
        "explain": {"model": name, "size": size, "limit": LIMIT, "ratio": ratio, "rows": [asdict(row) for row in fast]},
        "effects": {"model": name, "size": size, "concepts": int(concepts), "rows": [asdict(row) for row in causal]},
        "memory": [asdict(row) for row in flat],
        "driver_blocks_per_second": driver,
        "rounds": rounds,
        "versions": versions,
    }
    (RESULTS / "scale.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
