import io

import keras
import numpy as np
import pytest
from rich.console import Console

from tfcausal import progress as progress_module
from tfcausal.callbacks import EpochCheckpoint, StopOnDivergence, TrainingProgress, restore_checkpoint
from tfcausal.errors import TrainingDiverged
from tfcausal.progress import ConsoleProgress


def small_model():
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(2, activation="softmax")]
    )
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    return model


IMAGES = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
LABELS = np.arange(16) % 2


def fit(model, folder, epochs, initial_epoch=0, seed=1):
    losses = []
    checkpoint = EpochCheckpoint(
        lambda epoch: folder / f"checkpoint-{epoch:04d}.weights.h5",
        seed,
        lambda epoch, logs: losses.append((epoch, logs["loss"])),
    )
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(IMAGES, LABELS, epochs=epochs, initial_epoch=initial_epoch, callbacks=[checkpoint], **options)
    return losses


def test_a_training_that_goes_on_from_a_checkpoint_repeats_the_unbroken_one(tmp_path):
    """Weights, optimizer and dropout masks: any of them missing changes the losses of the second half."""
    unbroken = fit(small_model(), tmp_path, epochs=4)
    model = small_model()
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    restore_checkpoint(model, tmp_path / "checkpoint-0002.weights.h5")
    assert fit(model, tmp_path, epochs=4, initial_epoch=2) == unbroken[2:]


def test_the_seed_changes_the_dropout(tmp_path):
    assert fit(small_model(), tmp_path, epochs=2) != fit(small_model(), tmp_path, epochs=2, seed=2)


def test_a_failed_save_leaves_no_half_written_checkpoint(tmp_path, monkeypatch):
    model = small_model()

    def broken(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save_weights", broken)
    with pytest.raises(OSError, match="disk full"):
        fit(model, tmp_path, epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_lost_loss_stops_with_epoch_and_batch(bad):
    model = small_model()
    images = IMAGES.copy()
    images[9] = bad
    with pytest.raises(TrainingDiverged, match=r"the loss is nan in batch 3 of epoch 1\. Lower the learning rate"):
        model.fit(images, LABELS, batch_size=4, shuffle=False, verbose=0, callbacks=[StopOnDivergence()])


def test_progress_counts_every_batch_and_shows_validation():
    notes = []
    total = 0

    def advance(steps=1, note=None):
        nonlocal total
        total += steps
        notes.append(note)

    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = [TrainingProgress(advance, epochs=2)]
    model.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0, validation_data=(IMAGES, LABELS), callbacks=callbacks)
    assert total == 8
    assert notes[0].startswith("epoch 1/2  loss ")
    assert "validation accuracy" in notes[-1]


def test_lines_instead_of_bars_have_the_time_left(monkeypatch):
    """Ten steps, one per 4 seconds: a line at 12 s (3 done, 28 s left), every third step, and one at the end."""
    clock = iter(float(second) for second in range(0, 44, 4))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with ConsoleProgress(Console(file=stream, width=40)) as progress, progress.task("training", 10) as advance:
        for _ in range(10):
            advance(note="loss 0.5")
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]
    assert lines[0].endswith("3/10  0:00:12, left 0:00:28  loss 0.5")
    assert lines[-1].endswith("10/10  0:00:40, left 0:00:00  loss 0.5")


def test_steps_of_an_earlier_process_do_not_count_for_the_time_left(monkeypatch):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with ConsoleProgress(Console(file=stream)) as progress, progress.task("training", 10, done=6) as advance:
        advance(2)
    assert "8/10  0:00:20, left 0:00:20" in stream.getvalue()


def test_bars_on_a_terminal():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with ConsoleProgress(console) as progress, progress.task("training", 2) as advance:
        advance(note="loss 0.5")
        advance()
    assert "training" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()
