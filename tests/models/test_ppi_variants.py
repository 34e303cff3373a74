"""Every option of PPI against a twin in float64, which is written out with tapes and without the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from skimage.measure import label as components
from skimage.measure import regionprops

from tfcausal.models.backbones.multi_view import multi_view
from tfcausal.models.ppi import PPIModel
from tfcausal.models.targets import Targets

L = keras.layers
ROWS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
BINARY = np.array([0, 1, 1, 0, 1, 0])


def network(
    norm: str | None = None,
    dropout: float = 0.0,
    units: int = 3,
    activation: str | None = "softmax",
    dtype: str = "float64",
) -> keras.Model:
    """Two convolutions and a dense layer; batch norm `before` or `after` the first ReLU, dropout behind it."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3), dtype=dtype)
    relu = None if norm == "before" else "relu"
    x = L.Conv2D(4, 3, strides=2, padding="same", activation=relu, dtype=dtype, name="features")(x)
    if norm:
        x = L.BatchNormalization(dtype=dtype, name="norm")(x)
    if norm == "before":
        x = L.ReLU(dtype=dtype)(x)
    if dropout:
        x = L.Dropout(dropout, dtype=dtype, name="dropout")(x)
    x = L.Conv2D(3, 3, padding="same", activation="relu", dtype=dtype, name="second")(x)
    x = L.Dense(units, dtype=dtype, name="last")(L.Flatten(dtype=dtype)(x))
    model = keras.Model(inputs, x if activation is None else L.Activation(activation, dtype=dtype)(x))
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        small = 0.2 * rng.normal(size=weight.shape)
        weight.assign(1.5 * weight if len(weight.shape) > 1 else small + (weight.path.endswith("gamma")))
    return model


@dataclass
class Twin:
    """The same network in plain TensorFlow."""

    backbone: keras.Model
    norm: str | None

    def weights(self, name: str) -> tuple[tf.Variable, tf.Variable]:
        layer = self.backbone.get_layer(name)
        return layer.kernel.value, layer.bias.value

    def convolved(self, x: tf.Tensor) -> tf.Tensor:
        kernel, bias = self.weights("features")
        return tf.nn.conv2d(x, kernel, 2, "SAME") + bias

    def features(self, x: tf.Tensor) -> tf.Tensor:
        """The output of the layer `features`."""
        value = self.convolved(x)
        return value if self.norm == "before" else tf.nn.relu(value)

    def statistics(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.nn.moments(self.features(x), (0, 1, 2))

    def affine(self, statistics: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        mean, variance = statistics
        layer = self.backbone.get_layer("norm")
        gain = layer.gamma.value / tf.sqrt(variance + layer.epsilon)
        return gain, layer.beta.value - mean * gain

    def before_dropout(self, features: tf.Tensor, statistics: Any) -> tf.Tensor:
        if not self.norm:
            return features
        gain, shift = self.affine(statistics)
        value = features * gain + shift
        return tf.nn.relu(value) if self.norm == "before" else value

    def maps(self, hidden: tf.Tensor) -> tf.Tensor:
        kernel, bias = self.weights("second")
        return tf.nn.relu(tf.nn.conv2d(hidden, kernel, 1, "SAME") + bias)

    def head(self, maps: tf.Tensor) -> tf.Tensor:
        kernel, bias = self.weights("last")
        return tf.matmul(tf.reshape(maps, (maps.shape[0], -1)), kernel) + bias

    def logits(self, x: tf.Tensor, statistics: Any, drawn: Any) -> tf.Tensor:
        return self.head(self.maps(self.before_dropout(self.features(x), statistics) * drawn))

    def drawn(self, images: int) -> Any:
        """What dropout draws in its next call, which depends on its seed and on the shape alone."""
        if "dropout" not in {layer.name for layer in self.backbone.layers}:
            return 1.0
        return self.backbone.get_layer("dropout")(tf.ones((images, 4, 4, 4), tf.float64), training=True)


# Of `statistics`, the first belong to the pass; in what the map does with it, the second are constants.


def gradient(twin: Twin, x: tf.Tensor, statistics: Any, drawn: Any, weights: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(x)
        evidence = tf.reduce_sum(weights * twin.logits(x, statistics[1], drawn))
    return tape.gradient(evidence, x)


ENLARGE = np.maximum(0, 1 - np.abs(np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)[:, None] - np.arange(4)))


def grad_cam(at: str) -> Callable[..., tf.Tensor]:
    def maps(twin: Twin, x: tf.Tensor, statistics: Any, drawn: Any, weights: tf.Tensor) -> tf.Tensor:
        features = twin.features(x)
        hidden = twin.before_dropout(features, statistics[0])
        if at == "second":
            features = twin.maps(hidden * drawn)
        with tf.GradientTape() as tape:
            tape.watch(features)
            shown = features
            if at == "features":
                # What was drawn for a value of 0 does not show; its mean stands for it.
                drawn = tf.where(hidden == 0, tf.ones_like(hidden), drawn)
                shown = twin.maps(twin.before_dropout(features, statistics[1]) * drawn)
            evidence = tf.reduce_sum(weights * twin.head(shown))
        slopes = tf.reduce_mean(tape.gradient(evidence, features), (1, 2), keepdims=True)
        cam = tf.nn.relu(tf.reduce_sum(slopes * features, 3))
        return tf.einsum("ij,njk,lk->nil", ENLARGE, cam, ENLARGE)[..., None]

    return maps


def stabilised(value: tf.Tensor) -> tf.Tensor:
    return value + tf.where(value < 0, tf.constant(-1e-6, tf.float64), tf.constant(1e-6, tf.float64))


def through_convolution(
    rule: str, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, stride: int, relevance: tf.Tensor
) -> tf.Tensor:
    pairs = [(x, kernel)]
    if rule == "z_plus":
        pairs = [(tf.nn.relu(x), tf.nn.relu(kernel)), (-tf.nn.relu(-x), -tf.nn.relu(-kernel))]
        bias = tf.nn.relu(bias)
    total = tf.add_n([tf.nn.conv2d(value, part, stride, "SAME") for value, part in pairs]) + bias
    quotient = relevance / stabilised(total)
    return tf.add_n([value * tf.nn.conv2d_transpose(quotient, part, x.shape, stride, "SAME") for value, part in pairs])


def relevance(rule: str) -> Callable[..., tf.Tensor]:
    def maps(twin: Twin, x: tf.Tensor, statistics: Any, drawn: Any, weights: tf.Tensor) -> tf.Tensor:
        features = twin.features(x)
        normalised = twin.before_dropout(features, statistics[0])
        hidden = normalised * drawn
        shown = twin.maps(hidden)
        kernel, _ = twin.weights("last")
        logits = twin.head(shown)
        flat = tf.reshape(shown, (shown.shape[0], -1))
        value = flat * tf.matmul(weights * logits / stabilised(logits), kernel, transpose_b=True)
        value = through_convolution(rule, hidden, *twin.weights("second"), 1, tf.reshape(value, shown.shape))
        kernel, bias = twin.weights("features")
        if twin.norm:
            gain, shift = twin.affine(statistics[1])
            if twin.norm == "before":
                kernel, bias = kernel * gain, bias * gain + shift
            else:
                value = value * features * gain / stabilised(normalised)
        return through_convolution(rule, x, kernel, bias, 2, value)

    return maps


MAPS: dict[str, Callable[..., tf.Tensor]] = {
    "wbp": lambda twin, x, *rest: gradient(twin, x, *rest) * x,
    "gradient": lambda *arguments: tf.abs(gradient(*arguments)),
    "grad_cam": grad_cam("second"),
    "grad_cam of features": grad_cam("features"),
    "lrp.epsilon": relevance("epsilon"),
    "lrp.epsilon_plus": relevance("z_plus"),
}


def normalised(maps: tf.Tensor) -> tf.Tensor:
    places = list(range(1, maps.shape.rank - 1))
    positive = tf.nn.relu(tf.reduce_sum(maps, -1))
    return tf.math.divide_no_nan(positive, tf.reduce_max(positive, places, keepdims=True))


def box(saliency: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    boxes = np.zeros(saliency.shape)
    for values, filled in zip(saliency, boxes, strict=True):
        salient = values > options.get("threshold", 0.25)
        if "threshold_quantile" in options:
            salient = values >= np.sort(values.ravel())[-round(values.size * (1 - options["threshold_quantile"]))]
        if options.get("largest_component"):
            numbers = components(salient, connectivity=values.ndim)
            salient = numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()
        (found,) = regionprops(salient.astype(int))
        starts, stops = np.split(np.array(found.bbox), 2)
        filled[tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))] = 1
    return boxes


def label_probability(logits: tf.Tensor, classes: np.ndarray, head: str) -> tf.Tensor:
    if head == "multi_class":
        return tf.gather(tf.nn.softmax(logits), classes, batch_dims=1)
    if head == "binary":
        return tf.where(classes == 1, tf.sigmoid(logits[:, 0]), tf.sigmoid(-logits[:, 0]))
    return tf.sigmoid(tf.gather(logits, classes, batch_dims=1))


def classification(logits: tf.Tensor, y: np.ndarray, head: str) -> tf.Tensor:
    if head == "multi_label":
        return -tf.reduce_mean(tf.math.log(tf.where(y == 1, tf.sigmoid(logits), tf.sigmoid(-logits))), 1)
    return -tf.math.log(label_probability(logits, y, head))


CONTRASTS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "one_vs_rest": lambda kept: -tf.math.log(1 - kept),
    "negated": tf.math.log,
    "probability": lambda kept: kept,
}


def terms_of(
    x: tf.Tensor,
    y: np.ndarray,
    classes: np.ndarray,
    head: str,
    clean: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    masked: Callable[[tf.Tensor], tf.Tensor],
    options: dict[str, Any],
) -> dict[str, tf.Tensor]:
    """Every term per sample. `clean` takes weights of the logits: logits and maps; `masked` gives logits."""
    count, units = len(x), 1 if head == "binary" else 3
    weights = (2.0 * classes - 1)[:, None] if head == "binary" else np.eye(units)[classes]
    logits, maps = clean(tf.constant(weights, tf.float64))
    present = y.any(axis=1).astype(float) if head == "multi_label" else np.ones(count)
    shown = maps if options.get("second_order", True) else tf.stop_gradient(maps)
    saliency = normalised(shown)
    if options.get("mask") == "box":
        mask = tf.constant(box(saliency.numpy(), options))
    else:
        threshold = options.get("threshold", 0.25)
        mask = tf.sigmoid(options.get("sharpness", 50.0) * (saliency - threshold))
    masks = tf.stack([mask, tf.gather(mask, np.arange(-1, count - 1) % count)])[..., None]
    removed = x - masks * (x - np.asarray(options.get("masked_value", 0.0)))
    without_cause, without_other = (
        label_probability(part, classes, head) for part in tf.split(masked(tf.reshape(removed, (-1, *x.shape[1:]))), 2)
    )
    places = list(range(1, maps.shape.rank))
    norms = [tf.reduce_mean(tf.abs(maps), places)]
    if options.get("regularised") == "all_classes":
        rows = (np.tile(np.eye(units)[number], (count, 1)) for number in range(units))
        norms = [tf.reduce_mean(tf.abs(clean(tf.constant(row))[1]), places) for row in rows]
    return {
        "classification_loss": classification(logits, y, head),
        "contrast_loss": present * CONTRASTS[options.get("contrast", "one_vs_rest")](without_cause),
        "regularisation_loss": present * tf.reduce_mean(tf.stack(norms), 0),
        "adversarial_loss": present * -tf.math.log(without_other),
        "mask_coverage": tf.reduce_mean(mask, places[:-1]),
    }


def total(terms: dict[str, tf.Tensor], options: dict[str, Any]) -> tf.Tensor:
    sum_of_terms = terms["classification_loss"] + terms["contrast_loss"] + terms["adversarial_loss"]
    return tf.reduce_mean(sum_of_terms + options.get("regularisation_weight", 0.1) * terms["regularisation_loss"])


def twin_step(
    backbone: keras.Model,
    images: np.ndarray,
    y: np.ndarray,
    classes: np.ndarray,
    head: str,
    saliency: str,
    norm: str | None,
    options: dict[str, Any],
) -> tuple[dict[str, float], list[tf.Tensor]]:
    twin = Twin(backbone, norm)
    x = tf.constant(images, tf.float64)
    drawn, *for_masked = (twin.drawn(len(x)) for _ in range(3))
    drawn_for_masked = tf.concat(for_masked, 0) if tf.is_tensor(drawn) else 1.0
    with tf.GradientTape() as tape:
        statistics = twin.statistics(x) if norm else ()
        frozen = tuple(map(tf.stop_gradient, statistics))

        def clean(weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return twin.logits(x, statistics, drawn), MAPS[saliency](twin, x, (statistics, frozen), drawn, weights)

        terms = terms_of(x, y, classes, head, clean, lambda x: twin.logits(x, frozen, drawn_for_masked), options)
        loss = total(terms, options)
    gradients = tape.gradient(loss, [weight.value for weight in backbone.trainable_weights])
    return {"loss": float(loss), **{name: float(tf.reduce_mean(term)) for name, term in terms.items()}}, gradients


LOSSES = {"softmax": "sparse_categorical_crossentropy", "sigmoid": "binary_crossentropy"}


class Spied(PPIModel):
    """Remembers the classes that the terms looked at."""

    def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Any:
        self.seen = targets.classes
        return super().objective(images, targets, training)


def compiled(model: keras.Model, activation: str | None = "softmax", optimizer: Any = None, **options: Any) -> Any:
    loss = LOSSES[activation] if activation else keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(1.0), loss, **{"run_eagerly": True, **options})
    return model


def step(model: keras.Model, images: np.ndarray, y: Any, **options: Any) -> tuple[dict[str, float], list[np.ndarray]]:
    """What one step with learning rate 1 reports, and the gradients that it followed."""
    before = [np.copy(weight.numpy()) for weight in model.trainable_weights]
    logs = model.train_on_batch(images, y, return_dict=True, **options)
    return logs, [start - weight.numpy() for start, weight in zip(before, model.trainable_weights, strict=True)]


def assert_same_step(found: tuple, expected: tuple) -> None:
    (logs, followed), (values, gradients) = found, expected
    assert logs.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(logs[name], value, rtol=5e-6, atol=1e-6, err_msg=name)
    for own, gradient in zip(followed, gradients, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-4, atol=3e-6)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gradient": ({"saliency": "gradient"}, {}),
    "gradient, norm after and dropout": ({"saliency": "gradient"}, {"norm": "after", "dropout": 0.4}),
    "gradient, norm before": ({"saliency": "gradient"}, {"norm": "before"}),
    "gradient, stopped": ({"saliency": "gradient", "second_order": False, "regularisation_weight": 0.0}, {}),
    "grad_cam": ({"saliency": "grad_cam"}, {}),
    "grad_cam, norm and dropout": ({"saliency": "grad_cam"}, {"norm": "after", "dropout": 0.4}),
    "grad_cam of features": ({"saliency": "grad_cam", "layer": "features"}, {}),
    "grad_cam of features, dropout": ({"saliency": "grad_cam", "layer": "features"}, {"dropout": 0.4}),
    "grad_cam of features, norm before": ({"saliency": "grad_cam", "layer": "features"}, {"norm": "before"}),
    "grad_cam of features, norm after": ({"saliency": "grad_cam", "layer": "features"}, {"norm": "after"}),
    "grad_cam, all classes": ({"saliency": "grad_cam", "layer": "features", "regularised": "all_classes"}, {}),
    "lrp.epsilon": ({"saliency": "lrp.epsilon"}, {}),
    "lrp.epsilon, norm after": ({"saliency": "lrp.epsilon"}, {"norm": "after"}),
    "lrp.epsilon_plus": ({"saliency": "lrp.epsilon_plus"}, {}),
    "lrp.epsilon_plus, norm before": ({"saliency": "lrp.epsilon_plus"}, {"norm": "before", "dropout": 0.4}),
    "lrp.epsilon_plus, norm after": ({"saliency": "lrp.epsilon_plus"}, {"norm": "after", "dropout": 0.4}),
    "lrp.epsilon_plus, all classes": ({"saliency": "lrp.epsilon_plus", "regularised": "all_classes"}, {}),
    "wbp, dropout": ({}, {"dropout": 0.4}),
    "wbp, norm and dropout": ({}, {"norm": "before", "dropout": 0.4}),
    "probability": ({"contrast": "probability"}, {}),
    "all classes": ({"regularised": "all_classes", "regularisation_weight": 2.0}, {"norm": "after"}),
    "box": ({"mask": "box", "threshold": 0.5}, {}),
    "box of a quantile": ({"mask": "box", "threshold_quantile": 0.9}, {}),
    "box of the largest component": ({"mask": "box", "threshold": 0.2, "largest_component": True}, {}),
    "masked value": ({"masked_value": 0.7}, {}),
    "masked value per channel": ({"masked_value": [0.5, -1.0, 0.0], "mask": "box", "threshold": 0.6}, {}),
    "binary": ({"sharpness": 20.0}, {"units": 1, "activation": "sigmoid"}),
    "binary, all classes": ({"regularised": "all_classes"}, {"units": 1, "activation": "sigmoid"}),
    "binary, linear, grad_cam": ({"saliency": "grad_cam", "layer": "features"}, {"units": 1, "activation": None}),
    "binary, lrp": ({"saliency": "lrp.epsilon_plus"}, {"units": 1, "activation": "sigmoid"}),
    "multi-label": ({}, {"activation": "sigmoid"}),
    "multi-label, linear": ({"multi_label": True, "contrast": "probability"}, {"activation": None}),
    "multi-label, all classes": ({"regularised": "all_classes", "contrast": "negated"}, {"activation": "sigmoid"}),
}


@pytest.mark.parametrize(("options", "architecture"), CASES.values(), ids=CASES.keys())
def test_step_follows_the_gradients_of_the_objective(images, labels, options, architecture):
    activation = architecture.get("activation", "softmax")
    model = compiled(Spied(network(**architecture), **options), activation)
    y = {"multi_class": labels, "binary": BINARY, "multi_label": ROWS}[model.head]
    found = step(model, images, y)
    if model.head == "multi_label":
        assert all(row[number] or not row.any() for row, number in zip(y, model.seen.numpy(), strict=True))
    else:
        np.testing.assert_array_equal(model.seen, y)
    saliency = options.get("saliency", "wbp") + (" of features" if "layer" in options else "")
    expected, gradients = twin_step(
        network(**architecture), images, y, model.seen.numpy(), model.head, saliency, architecture.get("norm"), options
    )
    if options.get("regularisation_weight") == 0.0:
        del expected["regularisation_loss"]
    assert 0 < expected["mask_coverage"] < 1
    assert_same_step(found, (expected, gradients))


@pytest.mark.parametrize(
    ("saliency", "norm"),
    [("wbp", "after"), ("grad_cam of features", None), ("lrp.epsilon_plus", "before")],
)
def test_compiled_step_follows_the_same_gradients(images, labels, saliency, norm):
    options = {"saliency": saliency.split()[0], "layer": "features" if "features" in saliency else None}
    model = compiled(PPIModel(network(norm, 0.4), **options), run_eagerly=False)
    found = step(model, images, labels)
    expected = twin_step(network(norm, 0.4), images, labels, labels, "multi_class", saliency, norm, {})
    assert_same_step(found, expected)


@pytest.mark.parametrize("saliency", ["wbp", "lrp.epsilon_plus"])
def test_no_gradient_sees_a_weight_that_the_step_has_updated(images, labels, saliency):
    """The map is computed again when it is differentiated: by then, another weight could have moved already."""
    _, expected = step(compiled(PPIModel(network(), saliency=saliency)), images, labels)
    model = compiled(PPIModel(network(), saliency=saliency), run_eagerly=False)
    weights = model.get_weights()
    for _ in range(30):
        model.set_weights(weights)
        model.optimizer.iterations.assign(0)
        _, followed = step(model, images, labels)
        for own, gradient in zip(followed, expected, strict=True):
            np.testing.assert_allclose(own, gradient, rtol=1e-4, atol=1e-5)


SALIENCIES: list[dict[str, Any]] = [
    {"saliency": "wbp"},
    {"saliency": "wbp", "regularised": "all_classes", "contrast": "probability"},
    {"saliency": "gradient"},
    {"saliency": "grad_cam"},
    {"saliency": "grad_cam", "layer": "features"},
    {"saliency": "lrp.epsilon_plus"},
    {"saliency": "lrp.epsilon"},
]


@pytest.mark.parametrize("options", SALIENCIES, ids=lambda options: "-".join(options.values()))
def test_gradient_of_the_whole_loss_is_the_one_that_differences_show(images, labels, options):
    """Along single weights, and along a direction of all of them."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3), dtype="float64")
    x = L.Conv2D(3, 3, padding="same", activation="relu", dtype="float64", name="features")(x)
    x = L.Conv2D(2, 3, padding="same", activation="relu", dtype="float64")(x)
    x = L.Dense(3, dtype="float64")(L.Flatten(dtype="float64")(x))
    backbone = keras.Model(inputs, x)
    for weight in backbone.weights:
        weight.assign(1.5 * weight + 0.1 * np.random.default_rng(0).normal(size=weight.shape))
    model = PPIModel(backbone, sharpness=8.0, regularisation_weight=5.0, **options)
    model.compile("sgd", "sparse_categorical_crossentropy")
    targets = Targets(tf.constant(labels), tf.constant(labels), tf.ones(6), None, None)
    x = tf.constant(images, tf.float64)

    def loss() -> tf.Tensor:
        objective = model.objective(x, targets, training=True)
        norm = objective.terms["regularisation_loss"]
        regularisation = tf.cast(norm.weight, tf.float64) * tf.reduce_mean(norm.loss)
        return (
            tf.reduce_mean(classification(objective.outputs, labels, "multi_class")) + regularisation + objective.added
        )

    weights = [weight.value for weight in backbone.trainable_weights]
    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, weights)
    rng = np.random.default_rng(2)
    everywhere = [rng.normal(size=weight.shape) / 10 for weight in weights]
    # TensorFlow resizes maps of float64 in float32, which wider steps must not see.
    size, tolerance = (3e-4, 3e-3) if options["saliency"] == "grad_cam" else (1e-6, 1e-4)
    directions = [everywhere]
    for number in (0, 0, 1, 2, 4):
        single = [np.zeros(weight.shape) for weight in weights]
        single[number].flat[rng.integers(single[number].size)] = 1.0
        directions.append(single)
    for direction in directions:
        values = []
        for share in (size, -2 * size, size):
            for weight, along in zip(weights, direction, strict=True):
                weight.assign_add(share * along)
            values.append(float(loss()))
        slope = sum(
            float(tf.reduce_sum(gradient * along)) for gradient, along in zip(gradients, direction, strict=True)
        )
        np.testing.assert_allclose(slope, (values[0] - values[1]) / (2 * size), rtol=tolerance, atol=tolerance / 10)


VOLUMES = np.random.default_rng(5).normal(size=(4, 3, 8, 8, 2))
OF_VOLUMES = np.array([0, 1, 2, 1])


def volume_network(kind: str, dtype: str = "float64") -> keras.Model:
    """Two layers of three-dimensional convolution, or one convolution for every slice."""
    keras.utils.set_random_seed(0)
    if kind == "multi-view":
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(dtype)
        model = multi_view((3, 8, 8, 2), 3, blocks=((3,),))
        keras.config.set_dtype_policy(before)
        for weight in model.weights:
            weight.assign(3 * weight + 0.05 * np.random.default_rng(0).normal(size=weight.shape))
        return model
    options = {"padding": "same", "activation": "relu", "dtype": dtype}
    x = inputs = keras.Input((3, 8, 8, 2), dtype=dtype)
    if kind == "convolutions":
        x = L.Conv3D(3, 3, **options, name="features")(x)
        x = x if dtype == "float64" else L.MaxPooling3D((1, 2, 2))(x)  # there is none of float64 volumes
        x = L.Flatten(dtype=dtype)(L.Conv3D(2, 3, strides=(1, 2, 2), **options, name="second")(x))
    else:
        x = keras.ops.reshape(x, (-1, 8, 8, 2))
        x = L.Conv2D(3, 3, strides=2, **options, name="features")(x)
        x = keras.ops.reshape(x, (-1, 3 * 4 * 4 * 3))
    model = keras.Model(inputs, L.Dense(3, activation="softmax", dtype=dtype, name="last")(x))
    for weight in model.weights:
        weight.assign(1.5 * weight + 0.05 * np.random.default_rng(0).normal(size=weight.shape))
    return model


def volume_twin(
    backbone: keras.Model, kind: str, saliency: str, options: dict[str, Any]
) -> tuple[dict[str, float], list[tf.Tensor]]:
    shared = backbone.get_layer("slice_network") if kind == "multi-view" else backbone
    names = {"features": "block1_conv1", "last": "logits"} if kind == "multi-view" else {}
    enlarge = np.eye(8) if kind == "multi-view" else ENLARGE

    def weights(name: str) -> tuple[tf.Variable, tf.Variable]:
        layer = (shared if name == "features" else backbone).get_layer(names.get(name, name))
        return layer.kernel.value, layer.bias.value

    def features(x: tf.Tensor) -> tf.Tensor:
        kernel, bias = weights("features")
        if kind == "convolutions":
            return tf.nn.relu(tf.nn.conv3d(x, kernel, [1] * 5, "SAME") + bias)
        stride = 2 if kind == "slices" else 1
        slices = [tf.nn.relu(tf.nn.conv2d(x[:, number], kernel, stride, "SAME") + bias) for number in range(3)]
        return tf.stack(slices, 1)

    def head(x: tf.Tensor) -> tf.Tensor:
        if kind == "convolutions":
            kernel, bias = weights("second")
            x = tf.nn.relu(tf.nn.conv3d(x, kernel, [1, 1, 2, 2, 1], "SAME") + bias)
        if kind == "multi-view":
            pooled = tf.stack([tf.nn.max_pool2d(x[:, number], 2, 2, "VALID") for number in range(3)], 1)
            x = tf.reduce_mean(tf.reduce_max(pooled, 1), (1, 2))
        kernel, bias = weights("last")
        return tf.matmul(tf.reshape(x, (x.shape[0], -1)), kernel) + bias

    def clean(evidence: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        maps = features(x)
        logits = head(maps)
        with tf.GradientTape() as inner:
            inner.watch([x, maps])
            explained = head(maps) if saliency == "grad_cam" else head(features(x))
            total_evidence = tf.reduce_sum(evidence * explained)
        slopes = inner.gradient(total_evidence, maps if saliency == "grad_cam" else x)
        if saliency != "grad_cam":
            return logits, slopes * x if saliency == "wbp" else tf.abs(slopes)
        # Every slice has mean slopes of its own: it is an image to the network.
        cam = tf.nn.relu(tf.reduce_sum(tf.reduce_mean(slopes, (2, 3), keepdims=True) * maps, 4))
        return logits, tf.einsum("ij,nsjk,lk->nsil", enlarge, cam, enlarge)[..., None]

    x = tf.constant(VOLUMES)
    with tf.GradientTape() as tape:
        terms = terms_of(x, OF_VOLUMES, OF_VOLUMES, "multi_class", clean, lambda x: head(features(x)), options)
        loss = total(terms, options)
    gradients = tape.gradient(loss, [weight.value for weight in backbone.trainable_weights])
    return {"loss": float(loss), **{name: float(tf.reduce_mean(term)) for name, term in terms.items()}}, gradients


@pytest.mark.parametrize(
    ("kind", "saliency", "options"),
    [
        ("convolutions", "wbp", {}),
        ("convolutions", "gradient", {"mask": "box", "threshold": 0.8, "largest_component": True}),
        ("convolutions", "wbp", {"mask": "box", "threshold_quantile": 0.98, "masked_value": [0.5, -1.0]}),
        ("slices", "grad_cam", {"layer": "features"}),
        ("slices", "wbp", {"contrast": "probability"}),
        ("multi-view", "wbp", {}),
        ("multi-view", "gradient", {"mask": "box", "threshold": 0.9, "largest_component": True}),
        ("multi-view", "grad_cam", {}),
        ("slices", "grad_cam", {"mask": "box", "threshold": 0.6, "layer": "features", "regularised": "all_classes"}),
    ],
)
def test_step_on_volumes(kind, saliency, options):
    model = compiled(PPIModel(volume_network(kind), saliency=saliency, **options))
    found = step(model, VOLUMES, OF_VOLUMES)
    expected, gradients = volume_twin(volume_network(kind), kind, saliency, options)
    assert 0 < expected["mask_coverage"] < 1
    assert_same_step(found, (expected, gradients))
    assert model.mask(tf.constant(VOLUMES)).shape == (4, 3, 8, 8, 1)


def test_volumes_within_fit():
    model = compiled(PPIModel(volume_network("convolutions", "float32"), mask="box"), run_eagerly=False)
    history = model.fit(VOLUMES, OF_VOLUMES, batch_size=2, epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
