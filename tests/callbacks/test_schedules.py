import keras
import numpy as np
import pytest

from tfcausal.callbacks import ParameterSchedule, linear_ramp, steps, warm_up
from tfcausal.errors import InvalidArgument
from tfcausal.models.ppi import PPIModel

QUIET = {"verbose": 0, "shuffle": False, "batch_size": 6}


def values(schedule, epochs):
    return [schedule(epoch) for epoch in range(epochs)]


def test_a_ramp_is_a_line_between_two_epochs():
    assert values(linear_ramp(0, 1, start=2, end=6), 8) == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert values(linear_ramp(5, 3, start=0, end=2), 4) == [5, 4, 3, 3]


def test_warm_up_and_steps():
    assert values(warm_up(0.3, epochs=2), 4) == [0, 0, 0.3, 0.3]
    assert values(warm_up(0.3, epochs=0), 2) == [0.3, 0.3]
    assert values(steps({3: 7, 0: 10, 2: 50}), 5) == [10, 10, 50, 7, 7]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: linear_ramp(0, 1, start=3, end=3), r"`end`: expected an epoch after start=3; received 3.*use `steps`"),
        (lambda: linear_ramp(0, float("nan"), start=0, end=3), "`last`: expected finite numbers; received nan"),
        (lambda: linear_ramp(0, 1, start=-1, end=3), "`start`: expected an integer of at least 0; received -1"),
        (lambda: warm_up(1.0, epochs=1.5), "`epochs`: expected an integer of at least 0; received 1.5"),
        (lambda: warm_up("1", epochs=1), "`value`: expected finite numbers; received '1'"),
        (lambda: steps({}), "expected a value for epoch 0 and for later epochs; received an empty dictionary"),
        (lambda: steps({2: 1.0}), "a value for epoch 0 and for later epochs; received epochs from 2 on"),
        (lambda: ParameterSchedule(), r"`schedules`: expected at least one schedule.*linear_ramp\("),
        (lambda: ParameterSchedule(sharpness=50), r"`sharpness`: expected a function.*received 50.*steps\({0: 50}\)"),
    ],
)
def test_schedules_that_are_none(make, text):
    with pytest.raises(InvalidArgument, match=text):
        make()


class Counted(PPIModel):
    """Counts how often its step is traced."""

    traces = 0

    def objective(self, images, targets, training):
        self.traces += training
        return super().objective(images, targets, training)


def test_the_step_uses_the_values_and_is_traced_once(plain, images, labels):
    model = Counted(plain())
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    schedule = ParameterSchedule(
        contrast_weight=linear_ramp(0, 2, start=0, end=2), sharpness=steps({0: 10, 1: 40}), threshold=lambda epoch: 0.5
    )
    history = model.fit(images, labels, epochs=3, callbacks=[schedule], **QUIET).history
    assert history["contrast_weight"] == [0, 1, 2]
    assert history["sharpness"] == [10, 40, 40]
    assert history["threshold"] == [0.5] * 3
    # The weights stand still: what changes in the loss is the scheduled weight alone.
    rest = np.array(history["classification_loss"]) + 0.1 * np.array(history["regularisation_loss"])
    contrast = np.array(history["contrast_weight"]) * np.array(history["contrast_loss"])
    np.testing.assert_allclose(history["loss"], rest + contrast + np.array(history["adversarial_loss"]), rtol=1e-5)
    assert history["mask_coverage"][0] != pytest.approx(history["mask_coverage"][1], rel=1e-2)
    assert history["mask_coverage"][1] == pytest.approx(history["mask_coverage"][2], rel=1e-5)
    assert model.traces == 1


def test_a_training_that_goes_on_has_the_values_of_its_epochs(ppi, images, labels):
    model = ppi()
    schedule = ParameterSchedule(contrast_weight=linear_ramp(0, 1, start=1, end=5))
    history = model.fit(images, labels, initial_epoch=3, epochs=5, callbacks=[schedule], **QUIET).history
    assert history["contrast_weight"] == [0.5, 0.75]


def test_callbacks_after_it_see_the_values(ppi, images, labels, tmp_path):
    path = tmp_path / "history.csv"
    callbacks = [ParameterSchedule(threshold=steps({0: 0.2, 1: 0.3})), keras.callbacks.CSVLogger(path)]
    ppi().fit(images, labels, epochs=2, callbacks=callbacks, **QUIET)
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    assert [float(row[header.index("threshold")]) for row in rows] == [0.2, 0.3]


@pytest.mark.parametrize(
    ("schedules", "text"),
    [
        ({"contrast": warm_up(1, 1)}, "expected one of contrast_weight, .*; received 'contrast'"),
        ({"threshold": steps({0: 0.5, 2: 1.5})}, "`threshold`: expected a number between 0 and 1; received 1.5"),
        ({"sharpness": lambda epoch: [5.0, float("inf")][epoch // 2]}, "`sharpness in epoch 2`: expected a finite"),
        ({"sharpness": lambda epoch: "5"}, "`sharpness in epoch 0`: expected a finite number .* received '5'"),
    ],
)
def test_a_value_that_a_later_epoch_cannot_have_is_refused_before_the_first(ppi, images, labels, schedules, text):
    model = ppi()
    before = model.get_weights()
    with pytest.raises(InvalidArgument, match=text):
        model.fit(images, labels, epochs=3, callbacks=[ParameterSchedule(**schedules)], **QUIET)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(model.parameters["threshold"].variable.numpy()) == pytest.approx(0.25)
    assert float(model.parameters["sharpness"].variable.numpy()) == 50


def test_a_plain_model_has_no_parameters(plain, images, labels):
    text = r"expected a model with parameters: PPIModel, CFCNModel, GAINModel or RRRModel; received Functional.*"
    with pytest.raises(InvalidArgument, match=text + "LearningRateScheduler"):
        plain().fit(images, labels, callbacks=[ParameterSchedule(contrast_weight=warm_up(1, 2))], **QUIET)
