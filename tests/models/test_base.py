from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, TrainingDiverged, UnsupportedOperation
from tfcausal.models.base import CausalClassifier, Objective, Term
from tfcausal.models.checks import require, require_number
from tfcausal.models.targets import Targets, class_indices

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
    doubled = tf.data.Dataset.from_tensor_slices((images, labels, (2 * weight).astype("int64"))).batch(6)
    results = model.evaluate(doubled, verbose=0, return_dict=True)
    np.testing.assert_allclose(results["loss"], 2 * expected, rtol=1e-5)


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
    expected = r"images \(N, height, width, channels\) or volumes; received inputs \(None, 5\)"
    with pytest.raises(InvalidArgument, match=expected):
        Plain(sequential(L.Dense(3), shape=(5,)))
    with pytest.raises(InvalidArgument, match="one unit with a sigmoid, or several; received a softmax over one unit"):
        Plain(sequential(L.Flatten(), L.Dense(1, activation="softmax")))
    with pytest.raises(UnsupportedOperation, match=r"has no graph of operations. Call `build"):
        Plain(keras.Sequential([L.Flatten(), L.Dense(3)]))
    with pytest.raises(InvalidArgument, match=r"a keras.Model; received str"):
        Plain("resnet")


def test_the_base_class_has_no_terms(classifier, images, labels):
    plain, model = compiled(classifier(batch_norm=True)), compiled(CausalClassifier(classifier(batch_norm=True)))
    histories = [one.fit(images, labels, epochs=2, verbose=0, shuffle=False).history for one in (plain, model)]
    assert_same_weights(model.get_weights(), plain.get_weights())
    assert set(histories[1]) == {"loss", "classification_loss"}
    np.testing.assert_array_equal(histories[1]["loss"], histories[0]["loss"])
    assert set(model.evaluate(images, labels, verbose=0, return_dict=True)) == {"loss", "classification_loss"}


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


def test_require_number_refuses_epochs_that_are_no_number(classifier):
    for name in ("warm_up_epochs", "ramp_epochs"):
        for value in (-1, 0.5, "2", None, float("inf")):
            with pytest.raises(InvalidArgument, match=f"`{name}`: expected an integer of at least 0; received"):
                Plain(classifier(), **{name: value})


HEADS = [
    (3, "softmax", None, "multi_class"),
    (3, None, None, "multi_class"),
    (3, None, False, "multi_class"),
    (3, None, True, "multi_label"),
    (3, "sigmoid", None, "multi_label"),
    (3, "sigmoid", True, "multi_label"),
    (3, "softmax", False, "multi_class"),
    (1, "sigmoid", None, "binary"),
    (1, None, None, "binary"),
    (1, "sigmoid", False, "binary"),
]


@pytest.mark.parametrize(("units", "activation", "multi_label", "head"), HEADS)
def test_head_of_every_activation(classifier, units, activation, multi_label, head):
    model = Plain(classifier(units=units, activation=activation), multi_label=multi_label)
    assert model.head == head
    assert model.get_config()["multi_label"] is multi_label


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_head_of_a_fused_activation_and_of_a_layer(activation):
    expected = {"sigmoid": "multi_label", "softmax": "multi_class"}[activation]
    layer = {"sigmoid": L.Activation("sigmoid"), "softmax": L.Softmax()}[activation]
    assert Plain(sequential(L.Flatten(), L.Dense(3, activation=activation))).head == expected
    assert Plain(sequential(L.Flatten(), L.Dense(3), layer)).head == expected


@pytest.mark.parametrize(
    ("units", "activation", "multi_label", "expected"),
    [
        (
            3,
            "softmax",
            True,
            "False for a head with a softmax; received True. Leave it out, or give the backbone a sig",
        ),
        (
            3,
            "sigmoid",
            False,
            "True for a head with a sigmoid; received False. Leave it out, or give the backbone a so",
        ),
        (1, "sigmoid", True, "None with one unit, a binary head; received True"),
        (1, None, True, "None with one unit, a binary head; received True"),
        (3, "softmax", "no", "True, False or None; received 'no'"),
    ],
)
def test_heads_that_are_not_what_the_argument_says(classifier, units, activation, multi_label, expected):
    with pytest.raises(InvalidArgument, match=f"`multi_label`: expected {expected}"):
        Plain(classifier(units=units, activation=activation), multi_label=multi_label)


def test_labels_of_a_binary_head_in_every_form(classifier, images):
    labels = np.array([0, 1, 1, 0, 1, 0])
    model = compiled(Brightness(classifier(units=1, activation="sigmoid")), "binary_crossentropy")
    model.optimizer.learning_rate = 0.0
    probability = model.backbone(images).numpy()[:, 0]
    expected = -np.log(np.where(labels == 1, probability, 1 - probability)).mean()
    for value in (labels, labels[:, None], labels.astype("float32"), labels.astype(bool), {"label": labels[:, None]}):
        logs = model.train_on_batch(images, value, return_dict=True)
        np.testing.assert_allclose(logs["classification_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("eager", [True, False])
def test_wrong_labels_of_a_binary_head(classifier, images, eager):
    labels = np.array([0, 1, 1, 0, 1, 0])
    model = compiled(Plain(classifier(units=1, activation="sigmoid")), "binary_crossentropy", run_eagerly=eager)
    one_hot = r"0 or 1, of shape \(N,\) or \(N, 1\); received shape \(\w, 2\). One unit tells two classes apart; more"
    for value, expected in (
        (np.eye(2)[labels], one_hot),
        (2 * labels, r"labels in \[0, 1\]; received the label 2"),
        (2 * labels - 1, r"labels in \[0, 1\]; received the label -1"),
        (0.25 * labels, "class indices; received 3 values with a fraction"),
    ):
        with pytest.raises(InvalidArgument, match=f"Invalid value for `y`: expected {expected}"):
            model.fit(images, value, verbose=0)


LOSSES = [
    (1, "sigmoid", "sparse_categorical_crossentropy", "binary_crossentropy for a binary head; received sparse_cat"),
    (3, "sigmoid", "categorical_crossentropy", "binary_crossentropy for a multi-label head; received categorical"),
    (3, None, "sparse_categorical_crossentropy", "from_logits=True, as the backbone gives logits: its head has no act"),
    (3, "softmax", keras.losses.SparseCategoricalCrossentropy(from_logits=True), "from_logits=False, as the backbone"),
]


@pytest.mark.parametrize(("units", "activation", "loss", "expected"), LOSSES)
def test_a_loss_that_reads_the_head_wrongly(classifier, images, labels, units, activation, loss, expected):
    model = compiled(Plain(classifier(units=units, activation=activation)), loss)
    y = np.eye(3)[labels] if activation == "sigmoid" and units == 3 else labels % max(units, 2)
    with pytest.raises(InvalidArgument, match=f"Invalid value for `loss`: expected {expected}"):
        model.fit(images, y, verbose=0)


@pytest.mark.parametrize("kind", [int, bool, float])
def test_weights_of_samples_beside_masks_of_any_kind(classifier, images, labels, kind):
    """Keras hands an array of weights on in the structure of the targets."""
    results = []
    for one in (kind, float):
        model = compiled(Plain(classifier()))
        y = {"label": labels, "mask": np.ones((6, 8, 8, 1), one), "has_mask": np.ones(6, one)}
        results.append(model.fit(images, y, sample_weight=np.arange(6).astype(one), verbose=0).history["loss"])
    if kind is bool:
        results[1] = (
            compiled(Plain(classifier()))
            .fit(images, labels, sample_weight=np.minimum(np.arange(6), 1.0), verbose=0)
            .history["loss"]
        )
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_negative_weights_of_samples(classifier, images, labels):
    with pytest.raises(InvalidArgument, match="`sample_weight`: expected numbers of at least 0; received -1"):
        compiled(Plain(classifier())).fit(images, labels, sample_weight=-np.ones(6), verbose=0)


def test_nothing_to_train(classifier, images, labels):
    backbone = classifier()
    backbone.trainable = False
    with pytest.raises(InvalidArgument, match="`backbone`: expected weights that can be trained; received none"):
        compiled(Plain(backbone)).fit(images, labels, verbose=0)


def test_an_exported_model_answers_like_the_backbone(classifier, images, tmp_path, capfd):
    model = Plain(classifier())
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(loaded.serve(tf.constant(images)), model.predict(images, verbose=0), rtol=1e-5)


ROWS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]])


def test_labels_of_a_multi_label_head_in_every_form(classifier, images):
    model = compiled(Brightness(classifier(activation="sigmoid")), "binary_crossentropy")
    model.optimizer.learning_rate = 0.0
    probability = model.backbone(images).numpy()
    expected = -np.log(np.where(ROWS == 1, probability, 1 - probability)).mean()
    for value in (ROWS, ROWS.astype("float32"), ROWS.astype(bool), {"label": ROWS}):
        logs = model.train_on_batch(images, value, return_dict=True)
        np.testing.assert_allclose(logs["classification_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("eager", [True, False])
def test_wrong_labels_of_a_multi_label_head(classifier, images, labels, eager):
    model = compiled(Plain(classifier(activation="sigmoid")), "binary_crossentropy", run_eagerly=eager)
    shape = r"rows of 0 and 1 of shape \(N, 3\), one column for every sigmoid of the head; received shape "
    for value, expected in (
        (labels, shape + r"\(\w,\)|received shape \(\w\). For one class per image use a softmax head"),
        (ROWS[:, :2], shape + r"\(\w, 2\). For one class per image use a softmax head"),
        (np.where(ROWS == 1, 2, 0.5), "rows of 0 and 1, one column for every sigmoid of the head; received 18 other"),
        (np.where(ROWS == 1, np.nan, 0), "rows of 0 and 1, one column for every .* received 9 other values"),
    ):
        with pytest.raises(InvalidArgument, match=expected):
            model.fit(images, value, verbose=0)


@pytest.mark.parametrize("eager", [True, False])
def test_labels_of_several_classes_for_a_head_of_one(classifier, images, labels, eager):
    shape = r"class indices of shape \(N,\) or one-hot rows of shape \(N, 3\); received shape \(\w, 4\)"
    for loss, value, expected in (
        ("categorical_crossentropy", np.eye(4)[labels], shape),
        ("categorical_crossentropy", ROWS, "rows that sum to 1, for one class per image; received 4 other rows. Give"),
        ("sparse_categorical_crossentropy", labels + 0.5, "class indices; received 6 values with a fraction"),
    ):
        model = compiled(Plain(classifier()), loss, run_eagerly=eager)
        with pytest.raises(InvalidArgument, match=f"Invalid value for `y`: expected {expected}"):
            model.fit(images, value, verbose=0)


@pytest.mark.parametrize(
    ("units", "activation", "loss"),
    [(1, "sigmoid", "binary_crossentropy"), (3, "sigmoid", "binary_crossentropy")],
)
def test_sample_weights_of_other_heads(classifier, images, units, activation, loss):
    weight = np.array([0.0, 3.0, 1.0, 0.5, 0.0, 2.0])
    rows = ROWS[:, :units]
    model = compiled(Brightness(classifier(units=units, activation=activation)), loss)
    probability = model.backbone(images).numpy()
    entropy = -np.log(np.where(rows == 1, probability, 1 - probability)).mean(axis=1)
    brightness = images.mean(axis=(1, 2, 3)) ** 2
    logs = model.train_on_batch(images, rows, sample_weight=weight, return_dict=True)
    np.testing.assert_allclose(logs["classification_loss"], (weight * entropy).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], (weight * (entropy + 2 * brightness)).mean(), rtol=1e-5)


class Adjustable(CausalClassifier):
    """Adds the brightness with a weight, and has a bound beside it."""

    reported = ("brightness_loss", "bound")

    def __init__(self, backbone: keras.Model, brightness_weight: float = 2.0, bound: float = 0.5, **kwargs) -> None:
        super().__init__(backbone, **kwargs)
        self.add_weight_of_term("brightness_weight", brightness_weight, "brightness_loss")
        self.add_parameter("bound", bound, "a number below 1", lambda number: number < 1)
        self.traces: list[bool] = []

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Objective:
        self.traces.append(training)
        bound = tf.fill(tf.shape(images)[:1], self.parameter("bound"))
        terms = {}
        if self.has_term("brightness_weight"):
            brightness = tf.reduce_mean(images, axis=(1, 2, 3))
            terms["brightness_loss"] = Term(brightness, self.weight("brightness_weight"))
        return Objective(self.backbone(images, training=training), terms, {"bound": bound})


def test_parameters_change_the_next_step_without_tracing_it_anew(classifier, images, labels):
    model = compiled(Adjustable(classifier()), run_eagerly=False)
    model.optimizer.learning_rate = 0.0
    first = model.train_on_batch(images, labels, return_dict=True)
    evaluated = model.test_on_batch(images, labels, return_dict=True)
    model.set_parameter("brightness_weight", 5)
    model.set_parameter("bound", -3.0)
    second = model.train_on_batch(images, labels, return_dict=True)
    np.testing.assert_allclose(second["loss"] - first["loss"], 3 * images.mean(), atol=1e-6)
    assert (first["bound"], second["bound"]) == (0.5, -3.0)
    assert model.traces == [True, False]
    again = model.test_on_batch(images, labels, return_dict=True)
    np.testing.assert_allclose(again["loss"] - evaluated["loss"], 3 * images.mean(), atol=1e-6)
    model.set_parameter("brightness_weight", 0.0)
    assert model.train_on_batch(images, labels, return_dict=True)["loss"] == first["classification_loss"]
    assert model.traces == [True, False]


def test_parameters_are_numbers_within_their_range(classifier):
    model = Adjustable(classifier())
    for name, value, expected in (
        (
            "weight",
            1.0,
            "`name`: expected one of brightness_weight, bound; received 'weight'. A term whose weight is 0",
        ),
        ("brightness_weight", -1.0, "`brightness_weight`: expected a finite number of at least 0; received -1.0"),
        ("brightness_weight", float("inf"), "`brightness_weight`: .*; received inf"),
        ("brightness_weight", "2", "`brightness_weight`: .*; received '2'"),
        ("bound", 1.0, "`bound`: expected a number below 1; received 1.0"),
        ("bound", float("nan"), "`bound`: expected a number below 1; received nan"),
    ):
        with pytest.raises(InvalidArgument, match=expected):
            model.set_parameter(name, value)
    assert [float(parameter.variable) for parameter in model.parameters.values()] == [2.0, 0.5]
    with pytest.raises(InvalidArgument, match="`bound`: expected a number below 1; received 2"):
        Adjustable(classifier(), bound=2)
    with pytest.raises(InvalidArgument, match="`name`: expected one of nothing: this model has no parameters"):
        Plain(classifier()).set_parameter("bound", 0.1)


def test_a_term_of_weight_zero_is_left_out_for_good(classifier, images, labels):
    model = compiled(Adjustable(classifier(), brightness_weight=0))
    logs = model.train_on_batch(images, labels, return_dict=True)
    assert set(logs) == {"loss", "classification_loss", "bound"}
    assert logs["loss"] == logs["classification_loss"]
    with pytest.raises(InvalidArgument, match="expected one of bound; received 'brightness_weight'"):
        model.set_parameter("brightness_weight", 1.0)


def test_weights_rise_along_the_ramp(classifier, images, labels):
    model = compiled(Adjustable(classifier(), warm_up_epochs=1, ramp_epochs=2), run_eagerly=False)
    model.optimizer.learning_rate = 0.0
    validation = {"validation_data": (images, labels)}
    history = model.fit(images, labels, epochs=5, shuffle=False, verbose=0, **validation).history
    share = np.array([0, 1 / 3, 2 / 3, 1, 1])
    added = np.array(history["loss"]) - np.array(history["classification_loss"])
    np.testing.assert_allclose(added, share * 2 * images.mean(), atol=1e-6)
    added = np.array(history["val_loss"]) - np.array(history["val_classification_loss"])
    np.testing.assert_allclose(added, share * 2 * images.mean(), atol=1e-6)
    assert sorted(model.traces) == [False, True]
    resumed = model.fit(images, labels, epochs=3, initial_epoch=2, verbose=0).history
    np.testing.assert_allclose(resumed["loss"], history["loss"][2], rtol=1e-6)
    assert sorted(model.traces) == [False, True]


def test_ramp_without_a_warm_up_begins_below_the_full_weight(classifier, images, labels):
    model = compiled(Adjustable(classifier(), ramp_epochs=1))
    model.optimizer.learning_rate = 0.0
    history = model.fit(images, labels, epochs=3, verbose=0).history
    added = np.array(history["loss"]) - np.array(history["classification_loss"])
    np.testing.assert_allclose(added, np.array([0.5, 1, 1]) * 2 * images.mean(), atol=1e-6)


@pytest.mark.parametrize("eager", [True, False])
def test_batch_norm_needs_more_than_one_image_to_begin_with(classifier, images, labels, eager):
    model = compiled(Plain(classifier(batch_norm=True)), run_eagerly=eager)
    before = weights_of(model)
    expected = "`batch_size`: expected at least 2; received 1. Batch normalisation needs the statistics of several"
    with pytest.raises(InvalidArgument, match=expected):
        model.fit(images, labels, batch_size=1, verbose=0)
    assert_same_weights(model.get_weights(), before)
    model.fit(images[:5], labels[:5], batch_size=2, verbose=0)  # a rest of one
    assert model.optimizer.iterations.numpy() == 3
    model.evaluate(images, labels, batch_size=1, verbose=0)


def test_batch_of_one_where_no_batch_norm_is_trained(classifier, images, labels):
    frozen = classifier(batch_norm=True)
    frozen.get_layer("norm").trainable = False
    for backbone in (classifier(), frozen):
        compiled(Plain(backbone)).fit(images, labels, batch_size=1, verbose=0)


@pytest.mark.parametrize("eager", [True, False])
def test_sample_weights_that_are_not_one_for_every_image(classifier, images, labels, eager):
    expected = r"`sample_weight`: expected one number for every image; received shape \(6 3\)"
    model = compiled(Brightness(classifier()), run_eagerly=eager)
    with pytest.raises(InvalidArgument, match=expected):
        model.fit(images, labels, sample_weight=np.ones((6, 3)), verbose=0)
    for wrong in (np.nan, np.inf):
        weight = np.where(labels == 1, wrong, 1.0)
        with pytest.raises(
            InvalidArgument, match="`sample_weight`: expected finite values; received 2 values that are"
        ):
            compiled(Brightness(classifier()), run_eagerly=eager).fit(images, labels, sample_weight=weight, verbose=0)
