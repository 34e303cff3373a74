from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.models.base import CausalClassifier
from tfcausal.models.gain import GAINModel
from tfcausal.saliency.cam import GradCAM

L = keras.layers
SIZE, CELLS = 8, 4
LOSSES = {"softmax": "sparse_categorical_crossentropy", "sigmoid": "binary_crossentropy"}


def network(
    units: int = 3, activation: str = "softmax", batch_norm: bool = False, dtype: str | None = "float32"
) -> keras.Model:
    """Feature maps at two depths, the same weights every time."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((SIZE, SIZE, 3), dtype=dtype)
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu", dtype=dtype, name="early")(x)
    if batch_norm:
        x = L.BatchNormalization(momentum=0.9, dtype=dtype, name="norm")(x)
    x = L.Conv2D(5, 1, activation="relu", dtype=dtype, name="late")(x)
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
def masks() -> np.ndarray:
    random = np.random.default_rng(1)
    return (random.random((6, SIZE, SIZE, 1)) < 0.4).astype("float32")


HAS_MASK = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], "float32")


@pytest.fixture
def y(labels, masks) -> dict[str, np.ndarray]:
    return {"label": labels, "mask": masks, "has_mask": HAS_MASK}


# The objective once more, without the package.


def forward(backbone: keras.Model, x: tf.Tensor, statistics: Any = None) -> dict[str, Any]:
    early = backbone.get_layer("early")
    features = tf.nn.relu(tf.nn.conv2d(x, early.kernel, 2, "SAME") + early.bias)
    return {"early": features, **after(backbone, features, statistics)}


def after(backbone: keras.Model, features: tf.Tensor, statistics: Any = None) -> dict[str, Any]:
    late, head = backbone.get_layer("late"), backbone.get_layer("logits")
    x = features
    if any(layer.name == "norm" for layer in backbone.layers):
        norm = backbone.get_layer("norm")
        statistics = statistics or tf.nn.moments(x, (0, 1, 2))
        x = norm.gamma * (x - statistics[0]) / tf.sqrt(statistics[1] + norm.epsilon) + norm.beta
    maps = tf.nn.relu(tf.nn.conv2d(x, late.kernel, 1, "SAME") + late.bias)
    logits = tf.reduce_mean(maps, axis=(1, 2)) @ tf.convert_to_tensor(head.kernel) + head.bias
    return {"late": maps, "logits": logits, "statistics": statistics}


def enlargement() -> np.ndarray:
    """Bilinear interpolation from 4 to 8 places as a matrix: every place between two centres has the share of both."""
    matrix = np.zeros((SIZE, CELLS))
    for place in range(SIZE):
        centre = np.clip((place + 0.5) * CELLS / SIZE - 0.5, 0, CELLS - 1)
        left = int(centre)
        matrix[place, left] += 1 - (centre - left)
        matrix[place, min(left + 1, CELLS - 1)] += centre - left
    return matrix


def twin_step(
    backbone: keras.Model,
    images: np.ndarray,
    y: dict[str, np.ndarray],
    options: dict[str, Any],
    weights: Any = 1.0,
) -> tuple[dict[str, float], list[tf.Tensor]]:
    head = backbone.layers[-1].activation.__name__
    labels = np.asarray(y["label"])
    x = tf.constant(images, tf.float64)
    with tf.GradientTape() as tape:
        whole = forward(backbone, x)
        logits = whole["logits"]
        units = logits.shape[1]
        # Per image: the sign and the logit of its class, whether it has one, and its classification loss.
        present = np.ones(len(labels))
        if head == "softmax":
            signs, chosen = np.ones(len(labels)), labels
            classification = -tf.math.log(tf.gather(tf.nn.softmax(logits), labels, batch_dims=1))
        else:
            rows = labels.reshape(len(labels), units)
            p = tf.sigmoid(logits)
            classification = -tf.reduce_mean(rows * tf.math.log(p) + (1 - rows) * tf.math.log(1 - p), axis=1)
            signs = 2.0 * rows[:, 0] - 1 if units == 1 else np.ones(len(labels))
            chosen = rows.argmax(axis=1)
            present = np.ones(len(labels)) if units == 1 else rows.max(axis=1)

        name = options.get("layer", "late")
        frozen = whole["statistics"] and tuple(tf.stop_gradient(value) for value in whole["statistics"])
        with tf.GradientTape() as inner:
            features = tf.stop_gradient(whole[name])
            inner.watch(features)
            if name == "late":
                kernel, bias = backbone.get_layer("logits").kernel, backbone.get_layer("logits").bias
                again = tf.reduce_mean(features, axis=(1, 2)) @ tf.convert_to_tensor(kernel) + bias
            else:
                again = after(backbone, features, frozen)["logits"]
            evidence = tf.reduce_sum(signs * tf.gather(again, chosen, batch_dims=1))
        channel_weights = tf.stop_gradient(tf.reduce_mean(inner.gradient(evidence, features), axis=(1, 2)))
        maps = tf.nn.relu(tf.einsum("nhwk,nk->nhw", whole[name], channel_weights))
        matrix = enlargement()
        maps = tf.einsum("Hh,nhw,Ww->nHW", matrix, maps, matrix)
        least, most = (reduce(maps, axis=(1, 2), keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
        attended = tf.cast(most > 0, tf.float64)[:, 0, 0]
        attention = (maps - least) / tf.where(most > 0, most - least, 1.0)
        mask = 1 / (1 + tf.exp(-options.get("sharpness", 10.0) * (attention - options.get("threshold", 0.5))))
        masked = x - mask[..., None] * (x - tf.constant(options.get("masked_value", 0.0), tf.float64))
        left = forward(backbone, masked, frozen)["logits"]
        if head == "softmax":
            probability = tf.gather(tf.nn.softmax(left), chosen, batch_dims=1)
        else:
            probability = tf.sigmoid(signs * tf.gather(left, chosen, batch_dims=1))
        mining = probability * present * attended
        terms = {"classification_loss": classification, "attention_mining_loss": mining}
        loss = classification + options.get("attention_weight", 1.0) * mining
        if options.get("supervision_weight"):
            of_class = np.asarray(y["mask"], np.float64)
            of_class = np.stack(
                [one[..., c if one.shape[-1] > 1 else 0] for one, c in zip(of_class, chosen, strict=True)]
            )
            has_mask = np.asarray(y["has_mask"], np.float64)
            if has_mask.ndim == 2:
                has_mask = has_mask[np.arange(len(labels)), chosen]
            has_mask = has_mask * present
            distances = has_mask * tf.reduce_mean((attention - of_class) ** 2, axis=(1, 2))
            terms["supervision_loss"] = distances * len(labels) / has_mask.sum()
            loss += options["supervision_weight"] * terms["supervision_loss"]
        terms["mask_coverage"] = tf.reduce_mean(mask, axis=(1, 2))
        loss = tf.reduce_mean(weights * loss)
    gradients = tape.gradient(loss, backbone.trainable_weights)
    return {"loss": float(loss), **{name: float(np.mean(term)) for name, term in terms.items()}}, gradients


CASES = {
    "defaults": {},
    "weight and mask": {"attention_weight": 2.0, "threshold": 0.3, "sharpness": 5.0, "masked_value": 0.5},
    "masked colour": {"masked_value": [0.1, -0.2, 0.3]},
    "another layer": {"layer": "early"},
    "supervision": {"supervision_weight": 10.0},
    "supervision alone": {"supervision_weight": 3.0, "attention_weight": 0.0, "layer": "early"},
}


def targets_for(options: dict[str, Any], y: dict[str, np.ndarray]) -> Any:
    return y if options.get("supervision_weight") else y["label"]


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_step_follows_the_gradients_of_the_objective(images, y, options, batch_norm):
    expected, gradients = twin_step(network(batch_norm=batch_norm, dtype="float64"), images, y, options)
    model = compiled(GAINModel(network(batch_norm=batch_norm, dtype="float64"), **options))
    logs, followed = step(model, images, targets_for(options, y))
    if not options.get("attention_weight", 1.0):
        expected.pop("attention_mining_loss")
    assert logs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    for gradient, own in zip(gradients, followed, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-3, atol=2e-5)


LABELS_OF = {
    "binary": (1, "sigmoid", np.array([[0], [1], [1], [0], [0], [1]])),
    # One label at most, so that which one is looked at is not drawn; one image without any.
    "multi-label": (3, "sigmoid", np.eye(4, dtype=int)[[0, 1, 2, 3, 2, 1]][:, :3]),
}


@pytest.mark.parametrize(("units", "activation", "rows"), LABELS_OF.values(), ids=LABELS_OF.keys())
@pytest.mark.parametrize("per_label", [False, True])
def test_other_heads(images, masks, units, activation, rows, per_label):
    options = {"supervision_weight": 4.0, "layer": "early"}
    y = {"label": rows, "mask": masks, "has_mask": HAS_MASK}
    if per_label:
        random = np.random.default_rng(2)
        y["mask"] = (random.random((6, SIZE, SIZE, units)) < 0.4).astype("float32")
        if units > 1:
            y["has_mask"] = (random.random((6, units)) < 0.6).astype("float32")
    expected, gradients = twin_step(network(units, activation, dtype="float64"), images, y, options)
    logs, followed = step(compiled(GAINModel(network(units, activation, dtype="float64"), **options)), images, y)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    for gradient, own in zip(gradients, followed, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-3, atol=2e-5)


def test_compiled_step_in_float32_follows_the_same_gradients(images, y):
    options = {"supervision_weight": 10.0, "layer": "early"}
    expected, gradients = twin_step(network(dtype="float64"), images, y, options)
    backbone = network()
    backbone.set_weights(network(dtype="float64").get_weights())
    logs, followed = step(compiled(GAINModel(backbone, **options), run_eagerly=False), images, y)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(flat(followed), flat(gradients), rtol=1e-2, atol=1e-4)


def test_sample_weights_weigh_every_term(images, y):
    options, weights = {"supervision_weight": 2.0}, np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    _, gradients = twin_step(network(dtype="float64"), images, y, options, weights)
    _, followed = step(compiled(GAINModel(network(dtype="float64"), **options)), images, y, sample_weight=weights)
    np.testing.assert_allclose(flat(followed), flat(gradients), rtol=1e-3, atol=2e-5)


ARGUMENTS = [
    ("attention_weight", 2.0, {}),
    ("supervision_weight", 5.0, {"supervision_weight": 10.0}),
    ("layer", "early", {}),
    ("threshold", 0.2, {}),
    ("sharpness", 3.0, {}),
    ("masked_value", 1.0, {}),
    ("masked_value", [0.0, 0.0, 1.0], {}),
    ("warm_up_epochs", 1, {}),
]


@pytest.mark.parametrize(("name", "value", "base"), ARGUMENTS)
def test_every_argument_changes_the_training(images, y, name, value, base):
    y = targets_for(base, y)
    _, followed = step(compiled(GAINModel(network(), **base)), images, y)
    _, again = step(compiled(GAINModel(network(), **base)), images, y)
    _, other = step(compiled(GAINModel(network(), **{**base, name: value})), images, y)
    np.testing.assert_array_equal(flat(again), flat(followed))
    assert np.linalg.norm(flat(other) - flat(followed)) > 1e-2 * np.linalg.norm(flat(followed))


def test_parameters_change_between_steps_without_a_new_trace(images, y):
    model = compiled(GAINModel(network(), supervision_weight=10.0), keras.optimizers.SGD(0.0), run_eagerly=False)
    first, _ = step(model, images, y)
    again, _ = step(model, images, y)
    model.set_parameter("threshold", 0.2)
    model.set_parameter("supervision_weight", 0.0)
    changed, _ = step(model, images, y)
    assert again["loss"] == first["loss"]
    assert changed["mask_coverage"] > first["mask_coverage"]
    assert changed["loss"] < first["loss"] - 1e-3
    with pytest.raises(InvalidArgument, match="`threshold`: expected a number between 0 and 1"):
        model.set_parameter("threshold", 1.0)


def test_weights_of_zero_leave_a_plain_step(images, labels):
    plain, model = compiled(network()), compiled(GAINModel(network(), attention_weight=0.0))
    followed = [step(one, images, labels)[1] for one in (plain, model)]
    np.testing.assert_allclose(flat(followed[0]), flat(followed[1]), rtol=1e-5, atol=1e-7)


def test_terms_join_after_the_warm_up(images, y):
    plain = compiled(network(), keras.optimizers.SGD(0.1))
    model = compiled(GAINModel(network(), supervision_weight=10.0, warm_up_epochs=1), keras.optimizers.SGD(0.1))
    plain.fit(images, y["label"], epochs=1, verbose=0, shuffle=False)
    history = model.fit(images, y, epochs=1, verbose=0, shuffle=False).history
    np.testing.assert_allclose(flat(model.get_weights()), flat(plain.get_weights()), rtol=1e-5, atol=1e-6)
    history = model.fit(images, y, initial_epoch=1, epochs=2, verbose=0, shuffle=False).history
    assert history["loss"][0] > history["classification_loss"][0] + 0.1


def test_images_without_a_mask_contribute_nothing(images, y):
    options = {"supervision_weight": 10.0, "attention_weight": 0.0}
    expected = step(compiled(GAINModel(network(), **options)), images, y)
    without = HAS_MASK == 0
    dummies = y["mask"].copy()
    dummies[without] = 1 - dummies[without]
    other = step(compiled(GAINModel(network(), **options)), images, {**y, "mask": dummies})
    assert other[0] == expected[0]
    np.testing.assert_array_equal(flat(other[1]), flat(expected[1]))
    # The term is the mean over those with a mask: alone in their batch they have the same.
    alone = {name: value[~without] for name, value in y.items()}
    logs, _ = step(compiled(GAINModel(network(), **options)), images[~without], alone)
    np.testing.assert_allclose(logs["supervision_loss"], expected[0]["supervision_loss"], rtol=1e-5)
    # Without any, the step is a plain one.
    plain, model = compiled(network()), compiled(GAINModel(network(), **options))
    logs, followed = step(model, images, {**y, "has_mask": np.zeros(6, "float32")})
    assert logs["supervision_loss"] == 0
    np.testing.assert_allclose(flat(followed), flat(step(plain, images, y["label"])[1]), rtol=1e-5, atol=1e-7)


def test_labels_of_an_image_are_looked_at_in_turn(images):
    def mining(row: list[int], steps: int) -> list[float]:
        model = compiled(GAINModel(network(3, "sigmoid")), keras.optimizers.SGD(0.0))
        return [float(step(model, images[:1], np.array([row]))[0]["attention_mining_loss"]) for _ in range(steps)]

    drawn, alone = mining([1, 0, 1], 24), [mining(row, 1)[0] for row in ([1, 0, 0], [0, 0, 1])]
    assert abs(alone[0] - alone[1]) > 1e-3
    found = np.array([[np.isclose(value, one, rtol=1e-5) for one in alone] for value in drawn])
    assert (found.sum(axis=1) == 1).all()
    assert (found.sum(axis=0) >= 6).all()


@pytest.mark.parametrize("eager", [True, False])
def test_moving_statistics_are_those_of_a_plain_step(images, y, eager):
    plain = compiled(network(batch_norm=True), run_eagerly=eager)
    model = compiled(GAINModel(network(batch_norm=True), supervision_weight=10.0), run_eagerly=eager)
    fresh = model.backbone.get_layer("norm").get_weights()[2:]
    plain.train_on_batch(images, y["label"])
    model.train_on_batch(images, y)
    moved, expected = (one.get_layer("norm").get_weights()[2:] for one in (model.backbone, plain))
    for start, own, other in zip(fresh, moved, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6)
        assert np.abs(own - start).max() > 1e-3


@pytest.mark.parametrize("bias", [-100.0, 100.0], ids=["dead", "saturated"])
def test_maps_that_are_the_same_everywhere_train_nothing_and_break_nothing(images, y, bias):
    backbone = network()
    late = backbone.get_layer("late")
    late.kernel.assign(tf.zeros_like(late.kernel))
    late.bias.assign(tf.fill(late.bias.shape, bias))
    model = compiled(GAINModel(backbone, supervision_weight=10.0))
    logs, followed = step(model, images, y)
    assert all(np.isfinite(value) for value in logs.values())
    assert np.isfinite(flat(followed)).all()
    assert logs["attention_mining_loss"] == 0
    np.testing.assert_allclose(logs["mask_coverage"], 1 / (1 + np.exp(5)), rtol=1e-4)
    np.testing.assert_allclose(logs["supervision_loss"], y["mask"][HAS_MASK == 1].mean(), rtol=1e-5)


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


def share_in_mask(model: CausalClassifier, images: np.ndarray, y: dict[str, np.ndarray]) -> float:
    maps = GradCAM(model.backbone)(images, y["label"])
    return float((maps * y["mask"]).sum() / maps.sum())


def test_supervision_moves_the_attention_into_the_mask():
    images, y = planted(48)
    model = GAINModel(network(2), attention_weight=0.0, supervision_weight=10.0)
    compiled(model, keras.optimizers.Adam(0.05), run_eagerly=False)
    before = share_in_mask(model, images, y)
    history = model.fit(images, y, epochs=25, batch_size=48, verbose=0).history
    assert history["classification_loss"][-1] < 0.2
    assert share_in_mask(model, images, y) > before + 0.2
    assert history["supervision_loss"][-1] < 0.7 * history["supervision_loss"][0]


def test_mining_leaves_less_to_be_recognised_in_the_masked_images(images, labels):
    model = compiled(GAINModel(network(), attention_weight=20.0), keras.optimizers.Adam(0.02))
    losses = [float(step(model, images, labels)[0]["attention_mining_loss"]) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_saved_model_has_every_argument_and_goes_on_where_it_stopped(images, y, tmp_path):
    options = {
        "attention_weight": 0.5,
        "supervision_weight": 10.0,
        "layer": "early",
        "threshold": 0.4,
        "sharpness": 8.0,
        "masked_value": [0.1, 0.2, 0.3],
        "multi_label": None,
        "warm_up_epochs": 1,
        "ramp_epochs": 2,
    }
    model = compiled(GAINModel(network(), **options), keras.optimizers.Adam(0.01))
    model.fit(images, y, epochs=3, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is GAINModel
    assert {name: loaded.get_config()[name] for name in options} == options
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-6)
    histories = [
        one.fit(images, y, initial_epoch=3, epochs=5, verbose=0, shuffle=False).history for one in (model, loaded)
    ]
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5, err_msg=name)


def test_evaluation_has_the_classification_loss_alone(images, y):
    for model, targets in ((GAINModel(network()), y["label"]), (GAINModel(network(), supervision_weight=1.0), y)):
        results = compiled(model).evaluate(images, targets, verbose=0, return_dict=True)
        assert results.keys() == {"loss", "classification_loss"}


def test_further_batches_of_the_same_shape_are_not_traced_again(images, y):
    model = compiled(GAINModel(network(), supervision_weight=10.0), run_eagerly=False)
    traced = []
    original = model.objective
    model.objective = lambda *args, **kwargs: traced.append(1) or original(*args, **kwargs)
    for _ in range(4):
        model.train_on_batch(images, y)
    assert len(traced) == 1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_takes_the_same_step_but_for_rounding(images, y, policy):
    expected, gradients = step(compiled(GAINModel(network(), supervision_weight=10.0)), images, y)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(GAINModel(network(dtype=None), supervision_weight=10.0))
        logs, followed = step(model, images, y)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.backbone.get_layer("late").compute_dtype == policy.removeprefix("mixed_")
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=0.05, atol=0.01, err_msg=name)
    assert np.linalg.norm(flat(followed) - flat(gradients)) < 0.2 * np.linalg.norm(flat(gradients))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attention_weight": -1.0}, "`attention_weight`: expected a finite number of at least 0; received -1.0"),
        ({"supervision_weight": float("nan")}, "`supervision_weight`: expected a finite number of at least 0"),
        ({"layer": "logits"}, r"`layer`: expected a layer whose output is \(batch, height, width, channels\)"),
        ({"layer": "no"}, "`layer`: expected one of .*early.*received 'no'"),
        ({"layer": 3}, "`layer`: expected the name or path of a layer, or None; received 3"),
        ({"threshold": 0.0}, "`threshold`: expected a number between 0 and 1; received 0.0"),
        ({"sharpness": 0}, "`sharpness`: expected a finite positive number; received 0"),
        ({"masked_value": float("inf")}, "`masked_value`: expected a finite number, or 3 of them; received inf"),
        ({"masked_value": [0.0, 1.0]}, "`masked_value`: expected a finite number, or 3 of them"),
        ({"masked_value": "mean"}, "`masked_value`: expected a finite number, or 3 of them; received 'mean'"),
        ({"warm_up_epochs": -1}, "`warm_up_epochs`: expected an integer of at least 0; received -1"),
        ({"ramp_epochs": 0.5}, "`ramp_epochs`: expected an integer of at least 0; received 0.5"),
    ],
)
def test_arguments_outside_their_range(options, text):
    with pytest.raises(InvalidArgument, match=text):
        GAINModel(network(), **options)


def test_backbone_without_feature_maps():
    dense = keras.Sequential([keras.Input((SIZE, SIZE, 3)), L.Flatten(), L.Dense(2, activation="softmax")])
    with pytest.raises(UnsupportedOperation, match="No layer of the model gives feature maps"):
        GAINModel(dense)


def test_masks_and_supervision_go_together(images, y):
    with pytest.raises(InvalidArgument, match="`supervision_weight`: expected a weight above 0 where masks are given"):
        compiled(GAINModel(network())).fit(images, y, verbose=0)
    with pytest.raises(InvalidArgument, match="GAINModel learns from masks; received labels alone"):
        compiled(GAINModel(network(), supervision_weight=10.0)).fit(images, y["label"], verbose=0)


WRONG_MASKS = np.ones((6, SIZE, SIZE, 2), "float32")


@pytest.mark.parametrize(
    ("activation", "changed", "text"),
    [
        ("softmax", {"mask": 255 * WRONG_MASKS[..., :1]}, r"`y\['mask'\]`: expected values in \[0, 1\]"),
        ("softmax", {"mask": WRONG_MASKS}, r"`y\['mask'\]`: expected shape \(N, any, any, 1\)"),
        ("sigmoid", {"mask": WRONG_MASKS}, "expected 1 channel, or one for each of the 3 labels; received 2"),
        ("sigmoid", {"has_mask": np.ones((6, 2))}, r"`y\['has_mask'\]`: expected shape \(N,\) or \(N, 3\); received"),
    ],
)
def test_masks_of_another_form(images, y, activation, changed, text):
    label = np.eye(3)[y["label"]] if activation == "sigmoid" else y["label"]
    model = compiled(GAINModel(network(3, activation), supervision_weight=10.0))
    with pytest.raises(InvalidArgument, match=text):
        model.fit(images, {**y, "label": label, **changed}, verbose=0)
