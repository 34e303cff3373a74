"""A small model, small images and what else the tests of many images share."""

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """The file of a classifier of three classes, with a softmax, for images of 8 x 6."""
    import keras

    keras.utils.set_random_seed(4)
    x = inputs = keras.Input((8, 6, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv1")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    path = tmp_path_factory.mktemp("models") / "model.keras"
    keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x)).save(path)
    return path


@pytest.fixture(scope="session")
def write_images():
    """Writes PNG files with random pixels, in two folders; gives the folder."""

    def write(folder, count=20):
        random = np.random.default_rng(0)
        for number in range(count):
            file = folder / ("a", "b")[number % 2] / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(file)
        return folder

    return write


@pytest.fixture(scope="session")
def images(tmp_path_factory, write_images):
    """A folder with 20 images; not to be changed."""
    return write_images(tmp_path_factory.mktemp("images") / "all")


@pytest.fixture(scope="session")
def explain_many():
    """The function, without progress, for images given as paths."""
    from tfcausal.explain import Settings
    from tfcausal.progress import ConsoleProgress
    from tfcausal.scale import explain_blocks

    def explain(model, places, output, settings=None, said=None, **options):
        progress = ConsoleProgress(Console(quiet=True))
        if said is not None:
            progress.say = said.append
        places = [str(place) for place in (places if isinstance(places, list) else [places])]
        return explain_blocks.explain_many(model, places, output, Settings(**(settings or {})), progress, **options)

    return explain


EFFECTS = {
    "levels": ["conv1"],
    "autoencoder": {"concepts": 3, "hidden": 4, "epochs": 3},
    "masking": {"share": 0.25, "blocks": [4, 3]},
    "attacks": [{"name": "fgsm", "eps": 0.1}],
    "resamples": 10,
    "maps": None,
}


@pytest.fixture(scope="session")
def concepts_of():
    """Measures effects of a model on some images, so that there are concepts; gives the folder of concepts."""
    from tfcausal.config import effects_from_mapping
    from tfcausal.effect_study.command import measure_effects
    from tfcausal.effect_study.request import Request
    from tfcausal.progress import ConsoleProgress

    def measure(model, images, folder, pixels=(-1.0, 1.0), **changes):
        request = Request(model, [images], output=folder, pixels=pixels)
        measure_effects(request, effects_from_mapping({**EFFECTS, **changes}), ConsoleProgress(Console(quiet=True)))
        return folder

    return measure


@pytest.fixture(scope="session")
def small_concepts(tmp_path_factory, concepts_of, small_model, images):
    """The concepts of the small model; not to be changed."""
    return concepts_of(small_model, images, tmp_path_factory.mktemp("concepts") / "some")


@pytest.fixture(scope="session")
def measure_many():
    """The function, without progress, for images given as paths."""
    from tfcausal.progress import ConsoleProgress
    from tfcausal.scale import effect_blocks
    from tfcausal.scale.effect_measurer import Study

    def measure(model, concepts, places, output, model_name=None, **options):
        progress = ConsoleProgress(Console(quiet=True))
        places = [str(place) for place in (places if isinstance(places, list) else [places])]
        return effect_blocks.measure_many(Study(model, concepts, model_name), places, output, progress, **options)

    return measure


@pytest.fixture(scope="session")
def effects_in():
    """All that a folder of effects holds: rows by position, arrays by name, and the table."""
    import pandas
    import zarr

    def read(folder):
        rows = pandas.read_parquet(folder / "answers.parquet").sort_values("position", ignore_index=True)
        group = zarr.open_group(folder / "effects.zarr", mode="r")
        arrays = {name: array[:] for name, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}
        table = folder / "effects.parquet"
        return rows, arrays, pandas.read_parquet(table) if table.exists() else None

    return read


@pytest.fixture(scope="session")
def same_effects(effects_in):
    """Asserts that two folders hold the same: every image once, and equal numbers."""
    import pandas

    def compare(one, other, within=1e-6):
        (rows, arrays, table), (other_rows, other_arrays, other_table) = effects_in(one), effects_in(other)
        assert rows["position"].tolist() == list(range(len(rows)))
        pandas.testing.assert_frame_equal(rows, other_rows, rtol=within, atol=within)
        assert arrays.keys() == other_arrays.keys()
        for name, values in arrays.items():
            np.testing.assert_allclose(values, other_arrays[name], rtol=within, atol=within)
        pandas.testing.assert_frame_equal(table, other_table, rtol=within, atol=within)

    return compare


@pytest.fixture(scope="session")
def results():
    """All rows of a folder of results, by position, and all maps."""
    import pandas
    import zarr

    def read(folder):
        rows = pandas.read_parquet(folder / "explanations.parquet").sort_values("position", ignore_index=True)
        return rows, zarr.open_array(folder / "maps.zarr", mode="r")[:]

    return read


@pytest.fixture(scope="session")
def same_results(results):
    """Asserts that two folders hold the same: every image once, and equal numbers."""
    import pandas

    def compare(one, other, within=1e-6):
        (rows, maps), (other_rows, other_maps) = results(one), results(other)
        assert rows["position"].tolist() == list(range(len(maps)))
        pandas.testing.assert_frame_equal(rows, other_rows, rtol=within, atol=within)
        np.testing.assert_allclose(maps, other_maps, rtol=within, atol=within * np.nanmax(np.abs(maps)))

    return compare


@pytest.fixture
def ended_at_the_third_call(monkeypatch):
    """Has the third call of a function end in Ctrl+C, and expects that it ends what is done within."""

    @contextmanager
    def ended(target, name):
        original, calls = getattr(target, name), []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(target, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                yield

    return ended


class Processes:
    """Looks at processes of this machine, and ends some."""

    def descendants(self, pid):
        """The processes that a process has started, and those that they have."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
        found = {pid}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {pid}

    def title(self, pid):
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return ""

    def alive(self, pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def are_gone(self, pids, seconds):
        deadline = time.monotonic() + seconds
        while any(map(self.alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return not any(map(self.alive, pids))

    def end(self, pids):
        for pid in filter(self.alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def processes():
    return Processes()
