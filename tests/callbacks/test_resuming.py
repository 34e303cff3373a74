import json
import logging
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from tfcausal.callbacks import ParameterSchedule, ResumableTraining, linear_ramp
from tfcausal.data.pipeline import training_batches
from tfcausal.data.sources.textured_digits import textured_digits
from tfcausal.errors import InvalidArgument, RunError

QUIET = {"verbose": 0, "shuffle": False, "batch_size": 3}


class Interruption(keras.callbacks.Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.current = epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.current = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.current == self.epoch and batch == 0:
            raise KeyboardInterrupt


def interrupted(model, folder, images, labels, epoch, epochs, *callbacks):
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            images,
            labels,
            epochs=epochs,
            callbacks=[*callbacks, ResumableTraining(folder), Interruption(epoch)],
            **QUIET,
        )


def resumed(model, folder, images, labels, epochs, *callbacks):
    return model.fit(images, labels, epochs=epochs, callbacks=[*callbacks, ResumableTraining(folder)], **QUIET)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(model, other):
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def zeroed(model):
    """What is not restored is then not right by chance."""
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    return model


def test_an_interrupted_training_repeats_the_unbroken_one(plain, images, labels, tmp_path):
    """Weights, optimizer, dropout and history: any of them missing changes the result."""
    unbroken = plain(dropout=0.5)
    expected = resumed(unbroken, tmp_path / "unbroken", images, labels, 5)
    interrupted(plain(dropout=0.5), tmp_path / "broken", images, labels, 3, 5)
    assert names(tmp_path / "broken") == ["checkpoint-0003"]
    keras.utils.set_random_seed(99)
    model = zeroed(plain(dropout=0.5, seed=7))
    history = resumed(model, tmp_path / "broken", images, labels, 5)
    assert history.history == expected.history
    assert history.epoch == [0, 1, 2, 3, 4]
    assert_same_weights(model, unbroken)
    assert names(tmp_path / "broken") == ["checkpoint-0005"]


def test_it_changes_nothing_of_a_training(plain, images, labels, tmp_path):
    expected = plain(dropout=0.5).fit(images, labels, epochs=3, **QUIET).history
    assert resumed(plain(dropout=0.5), tmp_path, images, labels, 3).history == expected


def test_a_ppi_training_with_a_warm_up_and_a_schedule_goes_on(ppi, images, labels, tmp_path):
    def callbacks():
        return [ParameterSchedule(contrast_weight=linear_ramp(0.1, 1, start=0, end=4))]

    options = {"dropout": 0.3, "warm_up_epochs": 1}
    unbroken = ppi(**options)
    expected = resumed(unbroken, tmp_path / "unbroken", images, labels, 4, *callbacks())
    interrupted(ppi(**options), tmp_path / "broken", images, labels, 2, 4, *callbacks())
    model = zeroed(ppi(**options))
    history = resumed(model, tmp_path / "broken", images, labels, 4, *callbacks())
    assert history.history == expected.history
    assert "contrast_weight" in history.history
    assert_same_weights(model, unbroken)


def test_mixed_precision_goes_on_with_its_loss_scale(images, labels, tmp_path):
    def build():
        keras.utils.set_random_seed(1)
        stack = [keras.layers.Flatten(), keras.layers.Dense(3, dtype=keras.DTypePolicy("mixed_float16"))]
        model = keras.Sequential([keras.Input((8, 8, 3)), *stack])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1), 1024.0, dynamic_growth_steps=3)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    unbroken = build()
    expected = resumed(unbroken, tmp_path / "unbroken", images, labels, 4)
    interrupted(build(), tmp_path / "broken", images, labels, 2, 4)
    model = zeroed(build())
    assert resumed(model, tmp_path / "broken", images, labels, 4).history == expected.history
    assert float(model.optimizer.dynamic_scale) == float(unbroken.optimizer.dynamic_scale) > 1024


def test_batches_of_the_pipeline_go_on_with_the_epoch(tmp_path):
    digits = textured_digits(train_size=24, validation_size=10, test_size=10).splits["train"]

    def fit(folder, *callbacks):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input(digits.image_shape), keras.layers.Flatten(), keras.layers.Dense(10)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        resumable = ResumableTraining(folder)
        batches, steps = training_batches(digits, 8, epochs=4, seed=0, initial_epoch=resumable.initial_epoch)
        options = {"steps_per_epoch": steps, "shuffle": False, "verbose": 0}
        return model.fit(batches, epochs=4, callbacks=[resumable, *callbacks], **options).history

    expected = fit(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", Interruption(2))
    assert ResumableTraining(tmp_path / "broken").initial_epoch == 2
    assert fit(tmp_path / "broken") == expected
    assert fit(tmp_path / "broken") == expected  # nothing is left to train, and there are no batches


KILLED = """
import os, signal, sys
import keras, numpy as np
from tfcausal.callbacks import ResumableTraining

keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
model.compile("adam", "mse")
save, calls = model.save_weights, []

def killed(path=None, *args, filepath=None, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        with open(path or filepath, "wb") as file:
            file.write(b"half of a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    return save(path or filepath, *args, **kwargs)

model.save_weights = killed
data = np.random.default_rng(0).normal(size=(8, 4)), np.ones(8)
model.fit(*data, epochs=5, shuffle=False, verbose=0, callbacks=[ResumableTraining(sys.argv[1])])
"""


def test_a_process_killed_in_the_middle_of_writing_leaves_the_checkpoint_before(tmp_path):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert result.returncode == -9, result.stderr.decode()
    partial, complete = names(tmp_path)
    assert partial.startswith(".partial-")
    assert complete == "checkpoint-0002"

    def fit(folder, epochs):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        data = np.random.default_rng(0).normal(size=(8, 4)), np.ones(8)
        options = {"shuffle": False, "verbose": 0, "callbacks": [ResumableTraining(folder)]}
        return model.fit(*data, epochs=epochs, **options).history["loss"]

    np.testing.assert_allclose(fit(tmp_path, 5), fit(tmp_path / "unbroken", 5), rtol=1e-6)
    assert names(tmp_path) == ["checkpoint-0005", "unbroken"]


def test_a_failed_write_leaves_the_checkpoint_before(plain, images, labels, tmp_path, monkeypatch):
    resumed(plain(), tmp_path, images, labels, 2)
    model = plain()
    monkeypatch.setattr(model, "save_weights", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        resumed(model, tmp_path, images, labels, 3)
    assert names(tmp_path) == ["checkpoint-0002"]
    assert len(resumed(plain(), tmp_path, images, labels, 3).epoch) == 3


def test_a_finished_training_is_not_repeated_and_more_epochs_go_on(plain, images, labels, tmp_path, caplog):
    unbroken = resumed(plain(dropout=0.5), tmp_path / "unbroken", images, labels, 4)
    first = plain(dropout=0.5)
    two = resumed(first, tmp_path / "run", images, labels, 2)
    again = zeroed(plain(dropout=0.5))
    with caplog.at_level(logging.WARNING):
        history = resumed(again, tmp_path / "run", images, labels, 2)
    assert "all 2 epochs are trained; this `fit` trains nothing" in caplog.text
    assert history.history == two.history
    assert history.epoch == [0, 1]
    assert_same_weights(again, first)
    assert resumed(plain(dropout=0.5), tmp_path / "run", images, labels, 4).history == unbroken.history


def test_a_training_that_early_stopping_ended_is_finished_with_its_best_weights(plain, images, labels, tmp_path):
    def callbacks():
        return [keras.callbacks.EarlyStopping("loss", patience=2, min_delta=10.0, restore_best_weights=True)]

    model = plain()
    history = resumed(model, tmp_path, images, labels, 9, *callbacks())
    assert history.epoch == [0, 1, 2]
    for epochs in (9, 2, 9):
        again = zeroed(plain())
        assert resumed(again, tmp_path, images, labels, epochs, *callbacks()).epoch == [0, 1, 2]
        assert_same_weights(again, model)


def test_a_later_fit_without_it_begins_where_it_is_told(plain, images, labels, tmp_path):
    """Keras's own callback leaves the number of the epoch in the model."""
    model = plain()
    resumed(model, tmp_path, images, labels, 2)
    resumed(model, tmp_path, images, labels, 4)
    assert model.fit(images, labels, epochs=2, **QUIET).epoch == [0, 1]
    assert model.fit(images, labels, initial_epoch=1, epochs=2, **QUIET).epoch == [1]


def test_after_an_interruption_a_new_folder_begins_anew(plain, images, labels, tmp_path):
    model = plain()
    resumed(model, tmp_path / "first", images, labels, 2)
    interrupted(model, tmp_path / "first", images, labels, 3, 5)
    assert model.fit(images, labels, epochs=2, **QUIET).epoch == [0, 1]
    assert resumed(model, tmp_path / "second", images, labels, 2).epoch == [0, 1]


def test_without_a_checkpoint_the_initial_epoch_of_fit_counts(plain, images, labels, tmp_path):
    history = plain().fit(images, labels, initial_epoch=2, epochs=4, callbacks=[ResumableTraining(tmp_path)], **QUIET)
    assert history.epoch == [2, 3]
    assert names(tmp_path) == ["checkpoint-0004"]


def test_values_of_callbacks_before_it_are_in_the_history(plain, images, labels, tmp_path):
    class Writes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["not_a_number"] = float("nan")
            logs["per_class"] = np.array([0.5, epoch])

    resumed(plain(), tmp_path, images, labels, 1, Writes())
    history = resumed(plain(), tmp_path, images, labels, 2, Writes()).history
    assert np.isnan(history["not_a_number"]).all()
    np.testing.assert_array_equal(history["per_class"], [[0.5, 0], [0.5, 1]])


def test_another_architecture_or_optimizer_is_refused_before_training(plain, images, labels, tmp_path):
    resumed(plain(), tmp_path, images, labels, 1)
    other = plain(filters=6)
    before = other.get_weights()
    text = (
        r"expected a checkpoint of the same architecture; received the shape \(3, 3, 3, 4\) for `kernel` of layer 1, "
    )
    with pytest.raises(InvalidArgument, match=text + r"`features`, where the model has \(3, 3, 3, 6\)\. Build"):
        resumed(other, tmp_path, images, labels, 2)
    np.testing.assert_array_equal(before[0], other.get_weights()[0])
    other = plain()
    other.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(InvalidArgument, match="received the state of the optimizer SGD where the model has Adam"):
        resumed(other, tmp_path, images, labels, 2)
    assert names(tmp_path) == ["checkpoint-0001"]


def test_folders_and_models_that_do_not_work(plain, images, labels, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="`folder`: expected a folder, or nothing yet; received the file"):
        ResumableTraining(tmp_path / "file")
    unbuilt = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")])
    unbuilt.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(InvalidArgument, match=r"expected a model that is built; .* Begin it with keras\.Input"):
        resumed(unbuilt, tmp_path / "run", images, labels, 1)
    resumed(plain(), tmp_path / "run", images, labels, 1)
    state = tmp_path / "run" / "checkpoint-0001" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()))[:-20])
    with pytest.raises(RunError, match=r"state\.json: the checkpoint cannot be read: .* Remove .*checkpoint-0001 to"):
        resumed(plain(), tmp_path / "run", images, labels, 2)


def test_other_files_in_the_folder_stay(plain, images, labels, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-of-mine").mkdir()
    resumed(plain(), tmp_path, images, labels, 2)
    assert names(tmp_path) == ["checkpoint-0002", "checkpoint-of-mine", "notes.txt"]
