import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.callbacks import ObjectiveGuard
from tfcausal.errors import InvalidArgument, TrainingDiverged
from tfcausal.models.cfcn import CFCNModel

QUIET = {"verbose": 0, "shuffle": False, "batch_size": 6}


class OwnStep(keras.Model):
    """A model of a user's own that reports what it is told to, epoch by epoch."""

    def __init__(self, reported):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.reported = {name: tf.Variable(0.0) for name in reported}
        self.series = reported

    def train_step(self, data):
        return {"loss": tf.constant(1.0), **{name: tf.identity(value) for name, value in self.reported.items()}}

    def fit_series(self, *callbacks):
        def begin(epoch, logs):
            for name, values in self.series.items():
                self.reported[name].assign(values[epoch])

        self.compile("sgd", "mse")
        epochs = len(next(iter(self.series.values())))
        setting = keras.callbacks.LambdaCallback(on_epoch_begin=begin)
        data = tf.data.Dataset.from_tensor_slices((np.ones((4, 2)), np.ones(4))).batch(2)
        return self.fit(data, epochs=epochs, callbacks=[setting, *callbacks], shuffle=False, verbose=0)


def test_a_mask_must_be_degenerate_several_times_in_a_row():
    """Two empty, one good, two full, one empty: never three of a kind."""
    coverage = {"mask_coverage": [0.0, 0.0, 0.3, 1.0, 1.0, 0.0]}
    assert len(OwnStep(coverage).fit_series(ObjectiveGuard(patience=3)).epoch) == 6


def test_an_empty_mask_stops_after_the_patience():
    text = (
        r"the mask is empty: `mask_coverage` was below smallest_coverage=0\.001 for 2 epochs in a row "
        r"\(now 0\.0005\)\. Change the threshold of the mask"
    )
    model = OwnStep({"mask_coverage": [0.0, 0.2, 0.0, 0.0005, 0.2]})
    with pytest.raises(TrainingDiverged, match=text):
        model.fit_series(ObjectiveGuard(patience=2))
    assert model.history.epoch == [0, 1, 2]


def test_a_mask_of_the_whole_image_stops():
    with pytest.raises(
        TrainingDiverged, match=r"the mask is the whole image: .* above largest_coverage=0\.8 .*now 0\.9"
    ):
        OwnStep({"mask_coverage": [0.9]}).fit_series(ObjectiveGuard(patience=1, largest_coverage=0.8))


def test_batches_can_be_counted_instead_of_epochs():
    """Two batches in an epoch: the third bad batch is the first of the second epoch."""
    model = OwnStep({"mask_coverage": [0.0, 0.0]})
    with pytest.raises(TrainingDiverged, match="for 3 batches in a row"):
        model.fit_series(ObjectiveGuard(patience=3, per="batch"))
    assert model.history.epoch == [0]


def test_epochs_of_the_warm_up_do_not_count():
    coverage = {"mask_coverage": [0.0, 0.0, 0.3]}
    OwnStep(coverage).fit_series(ObjectiveGuard(patience=1, warm_up_epochs=2))
    with pytest.raises(TrainingDiverged, match="the mask is empty"):
        OwnStep(coverage).fit_series(ObjectiveGuard(patience=1, warm_up_epochs=1))


def test_the_warm_up_of_the_model_is_known(ppi, images, labels):
    model = ppi(warm_up_epochs=2)
    history = model.fit(images, labels, epochs=3, callbacks=[ObjectiveGuard(patience=1)], **QUIET).history
    assert history["mask_coverage"][:2] == [0.0, 0.0]


@pytest.mark.parametrize("name", ["contrast_loss", "loss"])
def test_a_loss_without_bound_stops_at_once(name):
    """The whole loss counts where no contrast is reported: with one it has a weight, and the limit is in nats."""
    series = {
        name: [0.0, -19.0, -21.0],
        "mask_coverage": [0.3] * 3,
        **({"loss": [-50.0] * 3} if name != "loss" else {}),
    }
    text = rf"the contrast diverges; `{name}` is -21 in batch 1 of epoch 3, below minus divergence_limit=20\.0\. Use "
    with pytest.raises(TrainingDiverged, match=text + "contrast='one_vs_rest'"):
        OwnStep(series).fit_series(ObjectiveGuard())


def test_the_negated_contrast_of_ppi_is_caught_below_its_own_limit(ppi, images, labels):
    model = ppi(contrast="negated", contrast_weight=5.0, divergence_limit=1e6, learning_rate=0.1)
    with pytest.raises(TrainingDiverged, match=r"`contrast_loss` is -\d.* or lower contrast_weight"):
        model.fit(images, labels, epochs=60, callbacks=[ObjectiveGuard(divergence_limit=3.0)], **QUIET)


@pytest.mark.parametrize(
    ("options", "guard", "text"),
    [
        (
            {"threshold": 0.99, "sharpness": 500.0},
            {"smallest_coverage": 0.2},
            r"is empty.* Lower `threshold`, or set `threshold_quantile` .* lower `regularisation_weight`, or lower "
            "`contrast_weight`, or give the maps more `warm_up_epochs`",
        ),
        (
            {"threshold": 0.01, "sharpness": 0.1},
            {"largest_coverage": 0.3},
            "is the whole image.* Raise `threshold`, .* raise `regularisation_weight`, or lower `contrast_weight`, wh",
        ),
    ],
)
def test_the_message_says_what_to_change_in_ppi(ppi, images, labels, options, guard, text):
    model = ppi(**options)
    with pytest.raises(TrainingDiverged, match=text):
        model.fit(images, labels, epochs=3, callbacks=[ObjectiveGuard(patience=2, **guard)], **QUIET)
    assert model.history.epoch == [0]


def test_models_that_report_neither_are_refused_before_training(plain, images, labels):
    model = plain()
    before = model.get_weights()
    text = "reports `contrast_loss` or `mask_coverage`: PPIModel.*received Functional `.*`, which reports .*loss.*Leave"
    with pytest.raises(InvalidArgument, match=text):
        model.fit(images, labels, callbacks=[ObjectiveGuard()], **QUIET)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(3, 3)(inputs)
    wrapped = CFCNModel(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(maps)))
    wrapped.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(InvalidArgument, match=r"received CFCNModel .*, which reports causal_focus_loss, classif"):
        wrapped.fit(images, {"label": labels, "mask": np.ones((6, 8, 8, 1))}, callbacks=[ObjectiveGuard()], **QUIET)


def test_a_step_of_ones_own_that_reports_neither_is_refused_after_its_first_batch():
    with pytest.raises(InvalidArgument, match=r"received OwnStep `.*`, which reports loss, other"):
        OwnStep({"other": [0.0]}).fit_series(ObjectiveGuard())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"divergence_limit": 0}, "`divergence_limit`: expected a positive number; received 0"),
        ({"smallest_coverage": -0.1}, "`smallest_coverage`: expected a share between 0 and 1; received -0.1"),
        ({"smallest_coverage": 0.9, "largest_coverage": 0.5}, "`smallest_coverage`: expected less than largest_cov"),
        ({"patience": 0}, "`patience`: expected an integer of at least 1; received 0"),
        ({"per": "step"}, "`per`: expected 'epoch' or 'batch'; received 'step'"),
        ({"warm_up_epochs": 1.5}, "`warm_up_epochs`: expected an integer of at least 0; received 1.5"),
    ],
)
def test_arguments_out_of_range(options, text):
    with pytest.raises(InvalidArgument, match=text):
        ObjectiveGuard(**options)
