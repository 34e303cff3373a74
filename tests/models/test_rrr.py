from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument
from tfcausal.models.rrr import RRRModel
from tfcausal.saliency.gradients import Gradient

L = keras.layers
SIZE = 8
LOSSES = {"softmax": "sparse_categorical_crossentropy", "sigmoid": "binary_crossentropy"}
HAS_MASK = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], "float32")


def network(
    units: int = 3, activation: str = "softmax", batch_norm: bool = False, dtype: str | None = "float32"
) -> keras.Model:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((SIZE, SIZE, 3), dtype=dtype)
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="tanh", dtype=dtype, name="first")(x)
    if batch_norm:
        x = L.BatchNormalization(momentum=0.9, dtype=dtype, name="norm")(x)
    x = L.Conv2D(5, 1, activation="relu", dtype=dtype, name="second")(x)
    x = L.Dense(units, dtype=dtype, name="logits")(L.GlobalAveragePooling2D(dtype=dtype)(x))
    model = keras.Model(inputs, L.Activation(activation, dtype=dtype)(x))
    # What a fresh network says of different images hardly differs; what this one says does.
    model.set_weights([2 * value if value.ndim > 1 else value + 0.1 for value in model.get_weights()])
    return model


def compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> keras.Model:
    network = getattr(model, "backbone", model)
    loss = LOSSES[network.layers[-1].activation.__name__]
    model.compile(optimizer or keras.optimizers.SGD(1.0), loss, **{"run_eagerly": True, **options})
    return model


def step(model: keras.Model, images: np.ndarray, y: Any, **options: Any) -> tuple[dict, list[np.ndarray]]:
    """What one step with learning rate 1 reports, and the gradients that it followed."""
    before = [np.copy(weight.numpy()) for weight in model.trainable_weights]
    logs = model.train_on_batch(images, y, return_dict=True, **options)
    return logs, [start - weight.numpy() for start, weight in zip(before, model.trainable_weights, strict=True)]


def flat(gradients: list) -> np.ndarray:
    return np.concatenate([np.ravel(gradient) for gradient in gradients])


@pytest.fixture
def y(labels) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    masks = (random.random((6, SIZE, SIZE, 1)) < 0.4).astype("float32")
    return {"label": labels, "mask": masks, "has_mask": HAS_MASK}


def twin_step(
    backbone: keras.Model, images: np.ndarray, y: dict[str, np.ndarray], penalty_weight: float, weights: Any = 1.0
) -> tuple[dict[str, float], list[tf.Tensor]]:
    """The objective once more, without the package: the gradient of the log-probabilities themselves, by two tapes."""
    first, second, head = (backbone.get_layer(name) for name in ("first", "second", "logits"))
    norm = backbone.get_layer("norm") if any(layer.name == "norm" for layer in backbone.layers) else None
    softmax = backbone.layers[-1].activation.__name__ == "softmax"
    labels, has_mask = np.asarray(y["label"]), np.asarray(y["has_mask"], np.float64)
    outside = 1 - np.asarray(y["mask"], np.float64)
    x = tf.constant(images, tf.float64)
    with tf.GradientTape() as outer:
        with tf.GradientTape(persistent=True) as inner:
            inner.watch(x)
            hidden = tf.tanh(tf.nn.conv2d(x, first.kernel, 2, "SAME") + first.bias)
            mean, variance = tf.nn.moments(hidden, (0, 1, 2))
            gain = 1.0 if norm is None else norm.gamma / tf.sqrt(variance + norm.epsilon)
            between = hidden if norm is None else gain * (hidden - mean) + norm.beta
            between = tf.identity(between)
            inner.watch(between)
            maps = tf.nn.relu(tf.nn.conv2d(between, second.kernel, 1, "SAME") + second.bias)
            logits = tf.reduce_mean(maps, axis=(1, 2)) @ tf.convert_to_tensor(head.kernel) + head.bias
            powers = tf.exp(logits)
            if softmax:
                logs = tf.math.log(powers / tf.reduce_sum(powers, axis=1, keepdims=True))
            else:
                logs = tf.concat([tf.math.log(powers / (1 + powers)), tf.math.log(1 / (1 + powers))], axis=1)
            everything = tf.reduce_sum(logs)
        slopes = inner.gradient(everything, between)
        if norm is not None:  # whose statistics are constants in the gradient
            slopes *= norm.gamma / tf.sqrt(tf.stop_gradient(variance) + norm.epsilon)
        gradients = inner.gradient(hidden, x, output_gradients=slopes)
        penalty = has_mask * tf.reduce_sum((outside * gradients) ** 2, axis=(1, 2, 3)) * len(labels) / has_mask.sum()
        if softmax:
            classification = -tf.gather(logs, labels, batch_dims=1)
        else:
            rows = labels.reshape(len(labels), -1).astype(np.float64)
            classification = -tf.reduce_mean(tf.concat([rows, 1 - rows], axis=1) * logs, axis=1) * 2
        loss = tf.reduce_mean(weights * (classification + penalty_weight * penalty))
    terms = {"classification_loss": classification, "right_reasons_loss": penalty}
    return (
        {"loss": float(loss), **{name: float(np.mean(term)) for name, term in terms.items()}},
        outer.gradient(loss, backbone.trainable_weights),
    )


HEADS = {
    "multi-class": (3, "softmax", np.array([0, 1, 2, 2, 0, 1])),
    "two classes": (2, "softmax", np.array([0, 1, 1, 1, 0, 1])),
    "binary": (1, "sigmoid", np.array([[0], [1], [1], [0], [0], [1]])),
    "multi-label": (3, "sigmoid", np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 1, 0], [1, 0, 0]])),
}


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize(("units", "activation", "rows"), HEADS.values(), ids=HEADS.keys())
def test_step_follows_the_gradients_of_the_objective(images, y, units, activation, rows, batch_norm):
    y = {**y, "label": rows}
    expected, gradients = twin_step(network(units, activation, batch_norm, "float64"), images, y, 0.3)
    model = compiled(RRRModel(network(units, activation, batch_norm, "float64"), penalty_weight=0.3))
    logs, followed = step(model, images, y)
    assert logs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    for gradient, own in zip(gradients, followed, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-4, atol=2e-6)


def test_compiled_step_in_float32_follows_the_same_gradients(images, y):
    expected, gradients = twin_step(network(dtype="float64"), images, y, 0.3)
    backbone = network()
    backbone.set_weights(network(dtype="float64").get_weights())
    logs, followed = step(compiled(RRRModel(backbone, penalty_weight=0.3), run_eagerly=False), images, y)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(flat(followed), flat(gradients), rtol=1e-3, atol=1e-5)


def test_sample_weights_weigh_both_terms(images, y):
    weights = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    _, gradients = twin_step(network(dtype="float64"), images, y, 0.3, weights)
    model = compiled(RRRModel(network(dtype="float64"), penalty_weight=0.3))
    _, followed = step(model, images, y, sample_weight=weights)
    np.testing.assert_allclose(flat(followed), flat(gradients), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("name", "value"), [("penalty_weight", 0.6), ("warm_up_epochs", 1)])
def test_every_argument_changes_the_training(images, y, name, value):
    followed = []
    for options in ({}, {}, {name: value}):
        _, gradients = step(compiled(RRRModel(network(), **{"penalty_weight": 0.3, **options})), images, y)
        followed.append(flat(gradients))
    np.testing.assert_array_equal(followed[1], followed[0])
    assert np.linalg.norm(followed[2] - followed[0]) > 1e-2 * np.linalg.norm(followed[0])


def test_images_without_a_mask_contribute_nothing(images, y):
    expected = step(compiled(RRRModel(network(), penalty_weight=0.3)), images, y)
    without = HAS_MASK == 0
    dummies = y["mask"].copy()
    dummies[without] = 1 - dummies[without]
    other = step(compiled(RRRModel(network(), penalty_weight=0.3)), images, {**y, "mask": dummies})
    assert other[0] == expected[0]
    np.testing.assert_array_equal(flat(other[1]), flat(expected[1]))
    # The penalty is the mean over those with a mask: alone in their batch they have the same.
    alone = {name: value[~without] for name, value in y.items()}
    logs, _ = step(compiled(RRRModel(network(), penalty_weight=0.3)), images[~without], alone)
    np.testing.assert_allclose(logs["right_reasons_loss"], expected[0]["right_reasons_loss"], rtol=1e-5)
    # Without any, and without a weight, the step is a plain one.
    plain = flat(step(compiled(network()), images, y["label"])[1])
    for model, has_mask in ((RRRModel(network(), 0.3), np.zeros(6)), (RRRModel(network(), 0.0), HAS_MASK)):
        logs, followed = step(compiled(model), images, {**y, "has_mask": has_mask})
        assert not logs.get("right_reasons_loss")
        np.testing.assert_allclose(flat(followed), plain, rtol=1e-5, atol=1e-7)


def test_a_mask_of_the_whole_image_leaves_nothing_to_penalise(images, y):
    logs, _ = step(compiled(RRRModel(network(), penalty_weight=0.3)), images, {**y, "mask": np.ones_like(y["mask"])})
    assert logs["right_reasons_loss"] == 0


def test_a_network_that_says_the_same_of_every_image_breaks_nothing(images, y):
    backbone = network()
    second = backbone.get_layer("second")
    second.kernel.assign(tf.zeros_like(second.kernel))
    second.bias.assign(tf.fill(second.bias.shape, -100.0))
    logs, followed = step(compiled(RRRModel(backbone, penalty_weight=0.3)), images, y)
    assert logs["right_reasons_loss"] == 0
    assert np.isfinite(flat(followed)).all()


@pytest.mark.parametrize("eager", [True, False])
def test_moving_statistics_are_those_of_a_plain_step(images, y, eager):
    plain = compiled(network(batch_norm=True), run_eagerly=eager)
    model = compiled(RRRModel(network(batch_norm=True), penalty_weight=0.3), run_eagerly=eager)
    fresh = model.backbone.get_layer("norm").get_weights()[2:]
    plain.train_on_batch(images, y["label"])
    model.train_on_batch(images, y)
    moved, expected = (one.get_layer("norm").get_weights()[2:] for one in (model.backbone, plain))
    for start, own, other in zip(fresh, moved, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6)
        assert np.abs(own - start).max() > 1e-3


def planted(count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two classes that a line on the left and one on the right tell in the same way; the mask is on the left."""
    random = np.random.default_rng(4)
    labels = random.integers(2, size=count)
    images = random.normal(scale=0.3, size=(count, SIZE, SIZE, 3))
    for place in (1, 6):
        images[np.arange(count), 2:6, place] += np.where(labels, 1.0, -1.0)[:, None, None]
    masks = np.zeros((count, SIZE, SIZE, 1))
    masks[:, :, : SIZE // 2] = 1
    return images, {"label": labels, "mask": masks, "has_mask": np.ones(count)}


def sees_places(units: int) -> keras.Model:
    """A network whose weights can tell the left from the right."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = L.Flatten()(L.Conv2D(4, 3, activation="relu", padding="same")(inputs))
    return keras.Model(inputs, L.Dense(units, activation="softmax")(x))


def test_the_penalty_moves_the_gradient_into_the_mask():
    images, y = planted(48)
    model = RRRModel(sees_places(2), penalty_weight=1.0)
    compiled(model, keras.optimizers.Adam(0.01), run_eagerly=False)
    explain, shares = Gradient(model.backbone), []
    for epochs in (0, 25):
        history = model.fit(images, y, epochs=epochs, batch_size=24, verbose=0).history if epochs else {}
        squares = explain(images, y["label"]) ** 2
        shares.append((squares * y["mask"]).sum() / squares.sum())
    assert history["classification_loss"][-1] < 0.2
    assert shares[0] < 0.6
    assert shares[1] > 0.8


def test_saved_model_has_every_argument_and_goes_on_where_it_stopped(images, y, tmp_path):
    options = {"penalty_weight": 0.02, "multi_label": None, "warm_up_epochs": 1, "ramp_epochs": 2}
    model = compiled(RRRModel(network(), **options), keras.optimizers.Adam(0.01))
    model.fit(images, y, epochs=3, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is RRRModel
    assert {name: loaded.get_config()[name] for name in options} == options
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-6)
    histories = [
        one.fit(images, y, initial_epoch=3, epochs=5, verbose=0, shuffle=False).history for one in (model, loaded)
    ]
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5, err_msg=name)


def test_evaluation_has_the_classification_loss_alone(images, y):
    for targets in (y, y["label"]):
        results = compiled(RRRModel(network())).evaluate(images, targets, verbose=0, return_dict=True)
        assert results.keys() == {"loss", "classification_loss"}


def test_weight_changes_between_steps_without_a_new_trace(images, y):
    model = compiled(RRRModel(network(), penalty_weight=0.3), keras.optimizers.SGD(0.0), run_eagerly=False)
    traced = []
    original = model.objective
    model.objective = lambda *args, **kwargs: traced.append(1) or original(*args, **kwargs)
    first, _ = step(model, images, y)
    model.set_parameter("penalty_weight", 0.6)
    second, _ = step(model, images, y)
    assert len(traced) == 1
    np.testing.assert_allclose(second["loss"] - first["loss"], 0.3 * first["right_reasons_loss"], rtol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_takes_the_same_step_but_for_rounding(images, y, policy):
    expected, gradients = step(compiled(RRRModel(network(), penalty_weight=0.3)), images, y)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(RRRModel(network(dtype=None), penalty_weight=0.3))
        logs, followed = step(model, images, y)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.backbone.get_layer("second").compute_dtype == policy.removeprefix("mixed_")
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=0.05, atol=0.01, err_msg=name)
    assert np.linalg.norm(flat(followed) - flat(gradients)) < 0.2 * np.linalg.norm(flat(gradients))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"penalty_weight": -1.0}, "`penalty_weight`: expected a finite number of at least 0; received -1.0"),
        ({"penalty_weight": float("inf")}, "`penalty_weight`: expected a finite number of at least 0; received inf"),
        ({"penalty_weight": "1"}, "`penalty_weight`: expected a finite number of at least 0; received '1'"),
        ({"warm_up_epochs": 1.5}, "`warm_up_epochs`: expected an integer of at least 0; received 1.5"),
        ({"multi_label": True}, "`multi_label`: expected False for a head with a softmax"),
    ],
)
def test_arguments_outside_their_range(options, text):
    with pytest.raises(InvalidArgument, match=text):
        RRRModel(network(), **options)


def test_masks_are_needed_and_checked(images, y):
    model = compiled(RRRModel(network()))
    with pytest.raises(InvalidArgument, match="RRRModel learns from masks; received labels alone"):
        model.fit(images, y["label"], verbose=0)
    with pytest.raises(InvalidArgument, match=r"`y\['mask'\]`: expected values in \[0, 1\]"):
        model.fit(images, {**y, "mask": y["mask"] * 255}, verbose=0)
    with pytest.raises(InvalidArgument, match=r"`y\['mask'\]`: expected"):
        model.fit(images, {**y, "mask": np.ones((6, SIZE, SIZE, 2))}, verbose=0)
