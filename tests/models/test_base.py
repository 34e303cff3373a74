from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, TrainingDiverged, UnsupportedOperation
from tfcausal.models.base import CausalClassifier, Objective, Targets, Term, class_indices, require, require_number

L = keras.layers
FINITE = "Invalid value for `x`: expected finite values; received 2 values that are NaN or infinite. Clean the data."
LABELS = r"Invalid value for `y`: expected labels in \[0, 2\]; received the label {}. Check the labels"
DIVERGED = "Training was stopped: the loss is NaN or infinite. Lower the learning rate or the weights of the terms."


class Brightness(CausalClassifier):
    """Adds 2 times the square of every image's mean; reports that mean. In evaluation there is no term."""

    reported = ("brightness_loss", "brightness")

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        outputs = self.backbone(images, training=training)
        if not training:
            return Objective(outputs, {}, {})
        brightness = tf.reduce_mean(images, axis=(1, 2, 3))
        return Objective(outputs, {"brightness_loss": Term(brightness**2, 2.0)}, {"brightness": brightness})


class Plain(CausalClassifier):
    """Has no term."""

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        return Objective(self.backbone(images, training=training), {}, {})


def compiled(model: keras.Model, loss: str = "sparse_categorical_crossentropy", **options) -> keras.Model:
    model.compile(keras.optimizers.SGD(0.1), loss, **{"run_eagerly": True, **options})
    return model


def log_likelihood(backbone: keras.Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(backbone(images).numpy()[np.arange(len(labels)), labels])


def weights_of(model: keras.Model) -> list[np.ndarray]:
    return [np.copy(value) for value in model.get_weights()]


def assert_same_weights(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_terms_training_is_that_of_keras(classifier, images, labels):
    plain = compiled(classifier(batch_norm=True), metrics=["accuracy"], run_eagerly=False)
    model = compiled(Plain(classifier(batch_norm=True)), metrics=["accuracy"], run_eagerly=False)
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, "validation_data": (images, labels)}
    expected, history = (one.fit(images, labels, **options).history for one in (plain, model))
    assert_same_weights(model.get_weights(), plain.get_weights())
    for name, values in expected.items():
        np.testing.assert_array_equal(history[name], values)
    assert history["classification_loss"] == history["loss"]
    np.testing.assert_array_equal(model.predict(images, verbose=0), plain.predict(images, verbose=0))


def test_loss_is_the_weighted_sum_over_all_samples_whatever_the_batches(classifier, images, labels):
    model = compiled(Brightness(classifier()))
    model.optimizer.learning_rate = 0.0
    classification = log_likelihood(model.backbone, images, labels).mean()
    brightness = images.mean(axis=(1, 2, 3))
    history = model.fit(images, labels, batch_size=4, verbose=0).history
    np.testing.assert_allclose(history["classification_loss"], [classification], rtol=1e-5)
    np.testing.assert_allclose(history["brightness_loss"], [(brightness**2).mean()], rtol=1e-4)
    np.testing.assert_allclose(history["brightness"], [brightness.mean()], rtol=1e-4)
    np.testing.assert_allclose(history["loss"], [classification + 2 * (brightness**2).mean()], rtol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_sample_weights_count_in_every_term(classifier, images, labels, shape):
    weight = np.array([0.0, 3.0, 1.0, 0.5, 0.0, 2.0])
    model = compiled(Brightness(classifier()))
    classification = (weight * log_likelihood(model.backbone, images, labels)).sum() / 6
    brightness = (weight * images.mean(axis=(1, 2, 3)) ** 2).sum() / 6
    history = model.fit(images, labels, sample_weight=weight.reshape(shape), verbose=0).history
    np.testing.assert_allclose(history["classification_loss"], [classification], rtol=1e-5)
    np.testing.assert_allclose(history["brightness_loss"], [brightness], rtol=1e-4)
    np.testing.assert_allclose(history["loss"], [classification + 2 * brightness], rtol=1e-5)


def test_sample_weights_go_with_targets_in_a_dict(classifier, images, labels):
    weight = np.array([0.0, 3.0, 1.0, 0.5, 0.0, 2.0])
    model = compiled(Plain(classifier()))
    expected = (weight * log_likelihood(model.backbone, images, labels)).sum() / 6
    data = tf.data.Dataset.from_tensor_slices((images, {"label": labels}, weight)).batch(6)
    np.testing.assert_allclose(model.evaluate(data, verbose=0, return_dict=True)["loss"], expected, rtol=1e-5)


def test_evaluation_leaves_out_what_was_not_computed(classifier, images, labels):
    model = compiled(Brightness(classifier()), metrics=["accuracy"])
    assert set(model.evaluate(images, labels, verbose=0, return_dict=True)) == {
        "loss",
        "classification_loss",
        "accuracy",
    }
    history = model.fit(images, labels, validation_data=(images, labels), verbose=0).history
    assert {"brightness_loss", "brightness", "val_loss", "val_accuracy"} <= set(history)
    assert not {"val_brightness_loss", "val_brightness"} & set(history)


def test_metrics_of_an_epoch_start_anew(classifier, images, labels):
    model = compiled(Brightness(classifier()))
    history = model.fit(images, labels, epochs=2, batch_size=3, shuffle=False, verbose=0).history
    np.testing.assert_allclose(*history["brightness_loss"], rtol=1e-6)


def test_labels_in_every_form_give_the_same_loss(classifier, images, labels):
    one_hot = np.eye(3, dtype="float32")[labels]
    forms = {
        "sparse_categorical_crossentropy": [labels, labels.astype("uint8"), labels.astype("float32"), labels[:, None]],
        "categorical_crossentropy": [one_hot, one_hot.astype("int64")],
    }
    for loss, values in forms.items():
        model = compiled(Plain(classifier()), loss)
        expected = log_likelihood(model.backbone, images, labels).mean()
        for value in values:
            for target in (value, {"label": value}):
                np.testing.assert_allclose(model.test_on_batch(images, target), [expected] * 2, rtol=1e-5)


def test_class_indices_of_every_form():
    labels = np.array([2, 0, 1])
    for value in (labels, labels[:, None], labels.astype("float32"), np.eye(3)[labels], np.eye(3, dtype=int)[labels]):
        result = class_indices(tf.constant(value), 3)
        assert result.dtype == tf.int64
        np.testing.assert_array_equal(result, labels)


def test_class_indices_of_another_shape():
    expected = r"expected class indices of shape \(N,\) or one-hot rows of shape \(N, 3\); received shape \(2, 4\)"
    with pytest.raises(InvalidArgument, match=expected):
        class_indices(tf.zeros((2, 4)), 3)
    with pytest.raises(InvalidArgument, match=r"received shape \(\)"):
        class_indices(tf.constant(1), 3)
    compiled_function = tf.function(
        lambda label: class_indices(label, 3), input_signature=[tf.TensorSpec(None)], autograph=False
    )
    with pytest.raises(InvalidArgument, match=r"received a tensor of unknown rank. Keep the rank from call to call"):
        compiled_function.get_concrete_function()


def call(model: keras.Model, method: str, source: str, images: np.ndarray, y: object) -> None:
    quiet = {"fit": {"verbose": 0, "shuffle": False}, "evaluate": {"verbose": 0}}.get(method, {})
    if source == "dataset":
        getattr(model, method)(tf.data.Dataset.from_tensor_slices((images, y)).batch(3), **quiet)
    else:
        getattr(model, method)(images, y, **quiet)


WAYS = [
    (method, source, eager)
    for method, source, eager in [
        ("fit", "numpy", False),
        ("fit", "dataset", False),
        ("fit", "numpy", True),
        ("evaluate", "numpy", False),
        ("evaluate", "dataset", True),
        ("train_on_batch", "numpy", False),
        ("test_on_batch", "numpy", True),
    ]
]


@pytest.mark.parametrize(("method", "source", "eager"), WAYS)
def test_bad_values_are_named_and_change_no_weight(classifier, images, labels, method, source, eager):
    model = compiled(Brightness(classifier(batch_norm=True)), run_eagerly=eager)
    before = weights_of(model)
    bad_images = images.copy()
    bad_images[1, 2, 3, 0], bad_images[2, 0, 0, 1] = np.nan, -np.inf
    with pytest.raises(InvalidArgument, match=FINITE):
        call(model, method, source, bad_images, labels)
    for label in (3, -5):
        bad_labels = labels.copy()
        bad_labels[1] = label
        with pytest.raises(InvalidArgument, match=LABELS.format(label)):
            call(model, method, source, images, bad_labels)
    assert_same_weights(model.get_weights(), before)
    assert model.optimizer.iterations.numpy() == 0
    call(model, method, source, images, labels)


def test_bad_values_in_validation_data(classifier, images, labels):
    model = compiled(Plain(classifier()))
    with pytest.raises(InvalidArgument, match=LABELS.format(7)):
        model.fit(images, labels, validation_data=(images, labels + 5), verbose=0)


@pytest.mark.parametrize("eager", [False, True])
def test_loss_that_is_not_finite_stops_the_training(classifier, images, labels, eager):
    model = compiled(Plain(classifier()), run_eagerly=eager)
    model.optimizer.learning_rate = 1e30
    with pytest.raises(TrainingDiverged, match=DIVERGED):
        model.fit(images, labels, epochs=5, verbose=0)
    assert 0 < model.optimizer.iterations.numpy() < 5
    assert all(np.isfinite(value).all() for value in model.get_weights())


def test_an_error_that_is_not_ours_is_not_touched(classifier, images, labels):
    def refuse(image, label):
        with tf.control_dependencies([tf.debugging.Assert(label < 2, ["from the data set"])]):
            return tf.identity(image), label

    model = compiled(Plain(classifier()))
    with pytest.raises(tf.errors.InvalidArgumentError, match="from the data set"):
        model.fit(tf.data.Dataset.from_tensor_slices((images, labels)).map(refuse).batch(3), shuffle=False, verbose=0)


@pytest.mark.parametrize("eager", [False, True])
def test_images_of_another_shape(classifier, images, labels, eager):
    model = compiled(Plain(classifier()), run_eagerly=eager)
    expected = r"Invalid value for `x`: expected shape \(N, 8, 8, 3\); received shape \((N|6), 8, 8"
    for refused in (images[..., :2], images[..., 0]):
        with pytest.raises(InvalidArgument, match=expected):
            model.evaluate(refused, labels, verbose=0)
    model.evaluate(images, labels, verbose=0)


def test_what_was_refused_does_not_spoil_the_next_call(classifier, images, labels):
    """tf.function generalises the ranks that it has seen: `has_mask` is of unknown rank in the last call."""
    model = compiled(Plain(classifier()), run_eagerly=False)
    mask = np.ones((6, 4, 4, 1), "float32")
    model.evaluate(images, {"label": labels, "mask": mask, "has_mask": np.ones((6, 1))}, verbose=0)
    with pytest.raises(InvalidArgument, match=r"`y\['mask'\]`: expected shape"):
        model.evaluate(images, {"label": labels, "mask": mask[..., 0], "has_mask": np.ones(6)}, verbose=0)
    model.evaluate(images, {"label": labels, "mask": mask, "has_mask": np.ones(6)}, verbose=0)


def test_images_of_another_shape_after_images_of_the_right_one(classifier, images, labels):
    model = compiled(Plain(classifier()), run_eagerly=False)
    model.evaluate(images, labels, verbose=0)
    with pytest.raises(InvalidArgument, match=r"expected shape \(N, 8, 8, 3\); received shape \(6 8 8 2\)"):
        model.evaluate(images[..., :2], labels, verbose=0)
    with pytest.raises(InvalidArgument, match=r"expected shape \(N, 8, 8, 3\); received a tensor of unknown rank"):
        model.evaluate(images[..., 0], labels, verbose=0)


def test_images_of_unknown_shape_but_known_rank(classifier, images, labels):
    def forget(image, label):
        image = tf.numpy_function(np.copy, [image], tf.float32)
        image.set_shape((None, None, None))
        return image, label

    model = compiled(Plain(classifier()), run_eagerly=False)
    expected = log_likelihood(model.backbone, images, labels).mean()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).map(forget).batch(6)
    np.testing.assert_allclose(model.evaluate(data, verbose=0), [expected] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda y, mask: None, "NoneType"),
        (lambda y, mask: {"mask": mask, "has_mask": np.ones(6)}, "a dict of mask, has_mask"),
        (lambda y, mask: {"label": y, "has_mask": np.ones(6)}, "a dict of label, has_mask"),
        (lambda y, mask: {"label": y, "masks": mask}, "a dict of label, masks"),
    ],
)
def test_targets_in_another_form(classifier, images, labels, make, received):
    model = compiled(Plain(classifier()))
    with pytest.raises(
        InvalidArgument, match=f"labels, or a dict with `label`, `mask` and `has_mask`; received {received}"
    ):
        model.fit(images, make(labels, np.ones((6, 8, 8, 1))), verbose=0)


@pytest.mark.parametrize("eager", [False, True])
def test_masks_of_another_shape_or_range(classifier, images, labels, eager):
    model = compiled(Plain(classifier()), run_eagerly=eager)
    mask = np.ones((6, 4, 4, 1), "float32")
    with pytest.raises(
        InvalidArgument, match=r"`y\['mask'\]`: expected shape \(N, any, any, 1\); received shape \(\w, 4, 4\)"
    ):
        model.fit(images, {"label": labels, "mask": mask[..., 0]}, verbose=0)
    outside = mask.copy()
    outside[0, 0, :3, 0] = -0.1, 255.0, np.nan
    expected = (
        r"`y\['mask'\]`: expected values in \[0, 1\]; received 3 values outside. Divide masks of 0 and 255 by 255."
    )
    with pytest.raises(InvalidArgument, match=expected):
        model.fit(images, {"label": labels, "mask": outside}, verbose=0)
    model.fit(images, {"label": labels, "mask": mask}, verbose=0)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_targets_reach_the_objective(classifier, images, labels, shape, dtype):
    seen = []

    class Spy(Plain):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
            seen.append(targets)
            return super().objective(images, targets, training)

    mask = np.random.default_rng(0).uniform(size=(6, 4, 4, 1))
    has_mask = np.array([1, 0, 1, 1, 0, 0], dtype).reshape(shape)
    model = compiled(Spy(classifier()), "categorical_crossentropy")
    one_hot = np.eye(3)[labels]
    model.train_on_batch(images, {"label": one_hot, "mask": mask, "has_mask": has_mask})
    model.train_on_batch(images, {"label": one_hot, "mask": mask})
    model.train_on_batch(images, one_hot)
    np.testing.assert_array_equal(seen[0].classes, labels)
    np.testing.assert_array_equal(seen[0].label, one_hot)
    np.testing.assert_allclose(seen[0].mask, mask)
    np.testing.assert_array_equal(tf.cast(seen[0].has_mask, tf.float32), has_mask.reshape(-1))
    np.testing.assert_array_equal(seen[1].has_mask, np.ones(6))
    assert seen[2].mask is None
    assert seen[2].has_mask is None


def test_weight_regularisation_counts_once(classifier, images, labels):
    regulariser = keras.regularizers.L2(0.5)
    model = compiled(Plain(classifier(kernel_regularizer=regulariser)))
    kernels = [value for value in model.get_weights() if value.ndim == 4]
    expected = log_likelihood(model.backbone, images, labels).mean() + 0.5 * sum((k**2).sum() for k in kernels)
    np.testing.assert_allclose(model.evaluate(images, labels, verbose=0), [expected] * 2, rtol=1e-5)


def sequential(*layers: keras.layers.Layer, shape: tuple[int, ...] = (8, 8, 3)) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *layers])


def test_backbones_that_cannot_be_trained_say_why(classifier):
    regulariser = keras.regularizers.L1(0.1)
    with pytest.raises(InvalidArgument, match="without an activity regulariser; received one in `class_maps`"):
        Plain(classifier(activity_regularizer=regulariser))
    with pytest.raises(InvalidArgument, match=r"images \(N, height, width, channels\); received inputs \(None, 5\)"):
        Plain(sequential(L.Dense(3), shape=(5,)))
    with pytest.raises(InvalidArgument, match="at least 2 classes; received 1"):
        Plain(sequential(L.Flatten(), L.Dense(1, activation="sigmoid")))
    with pytest.raises(UnsupportedOperation, match=r"has no graph of operations. Call `build"):
        Plain(keras.Sequential([L.Flatten(), L.Dense(3)]))
    with pytest.raises(InvalidArgument, match=r"a keras.Model; received str"):
        Plain("resnet")


def test_the_objective_is_for_subclasses(classifier, images, labels):
    with pytest.raises(NotImplementedError):
        compiled(CausalClassifier(classifier())).fit(images, labels, verbose=0)


def test_xla_which_would_drop_the_checks_is_not_used(classifier, images, labels):
    model = Plain(classifier())
    assert not model.supports_jit
    with pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`"):
        compiled(model, jit_compile=True, run_eagerly=False)
    with pytest.raises(InvalidArgument, match=LABELS.format(5)):
        model.fit(images, labels + 3, verbose=0)


def test_further_batches_of_the_same_shape_are_not_traced_again(classifier, images, labels):
    traces = []

    class Counted(Plain):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
            traces.append(training)
            return super().objective(images, targets, training)

    model = compiled(Counted(classifier()), run_eagerly=False)
    model.fit(images, labels, batch_size=2, epochs=2, validation_data=(images, labels), verbose=0)
    model.fit(images, labels, batch_size=2, verbose=0)
    assert sorted(traces) == [False, True]


def test_require_number():
    for value in (0, 1.5, np.float32(2), np.int64(3)):
        require_number("alpha", value, "at least 0", lambda number: number >= 0)
    for value in (-1, float("nan"), "1", None, True, [1.0]):
        with pytest.raises(InvalidArgument, match="Invalid value for `alpha`: expected at least 0; received"):
            require_number("alpha", value, "at least 0", lambda number: number >= 0)


def test_require_outside_of_a_compiled_step():
    assert require(tf.constant(True), TrainingDiverged, "{} nats", tf.constant(3.0)) is None
    with pytest.raises(TrainingDiverged, match=r"^3.0 nats$"):
        require(tf.constant(False), TrainingDiverged, "{} nats", tf.constant(3.0))
