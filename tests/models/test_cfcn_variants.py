"""The variants of CFCN against twins in float64, written out without the package."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.models.backbones.multi_view import multi_view
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.targets import Targets

L = keras.layers
RNG = np.random.default_rng(1)
MASK = (RNG.uniform(size=(6, 8, 8, 1)) > 0.6).astype("float32")
PER_LABEL = (RNG.uniform(size=(6, 8, 8, 3)) > 0.6).astype("float32")
HAS_MASK = np.array([1, 1, 0, 1, 0, 1], "float32")
ROWS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
BINARY = np.array([0, 1, 1, 0, 1, 0])
FLAGS_PER_LABEL = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0]], "float32")
LOSSES = {
    "multi_class": "sparse_categorical_crossentropy",
    "multi_label": "binary_crossentropy",
    "binary": "binary_crossentropy",
}


def focus(maps: tf.Tensor, weights: np.ndarray, masks: np.ndarray) -> tf.Tensor:
    """The loss per image, one map at a time; `masks` have the size of the maps."""
    activation = tf.nn.relu(maps)
    places = list(range(1, maps.shape.rank - 1))
    outside = 1 - tf.reduce_sum(masks * activation, places) / (tf.reduce_sum(activation, places) + 1e-7)
    counted = weights.sum(axis=1)
    return tf.reduce_sum(weights * outside, 1) / np.where(counted > 0, counted, 1)


def dead(maps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    silent = (maps.max(axis=tuple(range(1, maps.ndim - 1))) <= 0) * weights
    return silent.sum(axis=1) / np.where(weights.sum(axis=1) > 0, weights.sum(axis=1), 1)


def cells(masks: np.ndarray) -> np.ndarray:
    """The share of every cell of 4x4 that masks of 8x8 cover."""
    return masks.reshape(*masks.shape[:-3], 4, 2, 4, 2, masks.shape[-1]).mean(axis=(-4, -2))


ENLARGE = np.maximum(0, 1 - np.abs(np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)[:, None] - np.arange(4)))


def enlarged(maps: tf.Tensor) -> tf.Tensor:
    return tf.einsum("ij,njkc,lk->nilc", ENLARGE, tf.nn.relu(maps), ENLARGE)


def step(model: keras.Model, images: np.ndarray, y: Any, **options: Any) -> tuple[dict[str, float], list[np.ndarray]]:
    model.compile(keras.optimizers.SGD(1.0), LOSSES[model.head], run_eagerly=True)
    before = [np.copy(weight.numpy()) for weight in model.trainable_weights]
    logs = model.train_on_batch(images, y, return_dict=True, **options)
    return logs, [start - weight.numpy() for start, weight in zip(before, model.trainable_weights, strict=True)]


def entropy_of(outputs: tf.Tensor, label: np.ndarray, head: str) -> tf.Tensor:
    if head == "multi_class":
        return -tf.math.log(tf.gather(outputs, label, batch_dims=1))
    rows = label.reshape(len(label), -1)
    return -tf.reduce_mean(tf.math.log(tf.where(rows == 1, outputs, 1 - outputs)), 1)


def fully_connected(units: int = 3, activation: str = "softmax") -> keras.Model:
    """Feature maps before a fully connected head, for variant F."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), dtype="float64")
    x = L.Conv2D(4, 3, strides=2, padding="same", dtype="float64", name="first")(inputs)
    x = L.Conv2D(5, 1, activation="relu", dtype="float64", name="maps")(L.ReLU(dtype="float64")(x))
    x = L.Dense(units, activation=activation, dtype="float64")(L.Flatten(dtype="float64")(x))
    return keras.Model(inputs, x)


def y_of(label: np.ndarray, mask: np.ndarray, has_mask: np.ndarray | None) -> dict[str, np.ndarray]:
    return {"label": label, "mask": mask} | ({} if has_mask is None else {"has_mask": has_mask})


CASES: dict[str, tuple[dict[str, Any], str, np.ndarray | None, np.ndarray, np.ndarray | None]] = {
    "F": ({"variant": "F"}, "multi_class", None, MASK, HAS_MASK),
    "F of a layer": ({"variant": "F", "layer": "first"}, "multi_class", None, MASK, HAS_MASK),
    "F, maps resized": ({"variant": "F", "resize": "maps"}, "multi_class", None, MASK, HAS_MASK),
    "F, multi-label": ({"variant": "F"}, "multi_label", ROWS, MASK, None),
    "F, binary": ({"variant": "F", "alpha": 0.5}, "binary", BINARY, MASK, HAS_MASK),
    "C, maps resized": ({"resize": "maps"}, "multi_class", None, MASK, HAS_MASK),
    "C, a mask per label": ({}, "multi_label", ROWS, PER_LABEL, HAS_MASK),
    "C, flags per label": ({}, "multi_label", ROWS, PER_LABEL, FLAGS_PER_LABEL),
    "C, a mask per label, maps resized": ({"resize": "maps"}, "multi_label", ROWS, PER_LABEL, None),
    "C, one mask for all labels": ({"alpha": 2.0}, "multi_label", ROWS, MASK, HAS_MASK),
    "C, one mask, flags per label": ({}, "multi_label", ROWS, MASK, FLAGS_PER_LABEL),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("weights", [None, np.array([0.0, 2.0, 1.0, 0.5, 3.0, 0.0])], ids=["alike", "weighted"])
def test_step_follows_the_gradients_of_the_objective(classifier, images, labels, case, weights):
    options, head, label, mask, has_mask = case
    label = labels if label is None else label
    activation, units = ("softmax" if head == "multi_class" else "sigmoid"), 1 if head == "binary" else 3
    is_f = options.get("variant") == "F"

    def build() -> keras.Model:
        if is_f:
            return fully_connected(units, activation)
        return classifier(dtype="float64", units=units, activation=activation)

    backbone = build()
    layer = backbone.get_layer(options.get("layer", "maps") if is_f else "class_maps")
    flags = np.ones(6) if has_mask is None else has_mask
    counted = np.ones((6, layer.filters)) if is_f else (label if head == "multi_label" else np.eye(3)[label])
    with_mask = counted * (flags if flags.ndim == 2 else flags[:, None])
    with tf.GradientTape() as tape:
        maps, outputs = keras.Model(backbone.input, [layer.output, backbone.output])(tf.constant(images, tf.float64))
        entropy = entropy_of(outputs, label, head)
        if options.get("resize") == "maps":
            term = focus(enlarged(maps), with_mask, mask)
        else:
            term = focus(maps, with_mask, cells(mask))
        per_image = entropy + options.get("alpha", 1.0) * term
        loss = tf.reduce_mean(per_image * (1 if weights is None else weights))
    gradients = tape.gradient(loss, backbone.trainable_weights)

    model = CFCNModel(build(), **options)
    assert model.head == head
    logs, followed = step(model, images, y_of(label, mask, has_mask), sample_weight=weights)
    shares = 1 if weights is None else weights
    assert set(logs) == {"loss", "classification_loss", "causal_focus_loss", "dead_maps"}
    np.testing.assert_allclose(logs["loss"], loss, rtol=2e-6)
    np.testing.assert_allclose(logs["classification_loss"], np.mean(shares * entropy), rtol=2e-6)
    np.testing.assert_allclose(logs["causal_focus_loss"], np.mean(shares * term), rtol=2e-6)
    np.testing.assert_allclose(logs["dead_maps"], dead(maps.numpy(), counted).mean(), rtol=1e-6)
    for own, gradient in zip(followed, gradients, strict=True):
        expected = np.zeros(own.shape) if gradient is None else gradient
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=2e-6)


def test_maps_that_died_are_counted_whether_they_have_a_mask_or_not(classifier, images, labels):
    for flags in (np.ones(6), np.zeros(6)):
        model = CFCNModel(classifier())
        model.backbone.get_layer("class_maps").bias.assign([50.0, -1e3, 50.0])
        logs, _ = step(model, images, y_of(labels, MASK, flags))
        assert logs["dead_maps"] == pytest.approx((labels == 1).mean())
    of_labels = CFCNModel(classifier(activation="sigmoid"))
    of_labels.backbone.get_layer("class_maps").bias.assign([50.0, -1e3, 50.0])
    logs, _ = step(of_labels, images, y_of(ROWS, MASK, None))
    # Of the labels of every image, the share that is the second one; no image without labels.
    assert logs["dead_maps"] == pytest.approx(np.mean([0, 0, 1 / 3, 1, 0, 1 / 2]))
    results = of_labels.evaluate(images, y_of(ROWS, MASK, None), verbose=0, return_dict=True)
    assert 0 <= results["dead_maps"] <= 1


def test_a_dead_map_gets_nothing_from_the_objective(classifier, images, labels):
    backbone = classifier()
    backbone.get_layer("class_maps").bias.assign([50.0, -1e3, 50.0])
    before = backbone.get_layer("class_maps").get_weights()
    plain = classifier()
    plain.set_weights(backbone.get_weights())
    plain.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    only = labels == 1
    step(CFCNModel(backbone, alpha=10.0), images[only], y_of(labels[only], MASK[only], None))
    plain.train_on_batch(images[only], labels[only])
    for own, expected in zip(backbone.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(backbone.get_layer("class_maps").get_weights()[1] - before[1]).max() > 0


def slices(units: int = 3) -> keras.Model:
    """A convolution for every slice of a volume, and a head on all of them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, 8, 8, 3), dtype="float64")
    x = keras.ops.reshape(inputs, (-1, 8, 8, 3))
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu", dtype="float64", name="features")(x)
    x = keras.ops.reshape(x, (-1, 2 * 4 * 4 * 4))
    return keras.Model(inputs, L.Dense(units, activation="softmax", dtype="float64")(x))


@pytest.mark.parametrize("resize", ["masks", "maps"])
def test_volumes_have_masks_of_their_slices(images, labels, resize):
    volumes, masks = np.stack([images, images[::-1]], 1), np.stack([MASK, 1 - MASK], 1)
    backbone = slices()
    convolution = backbone.get_layer("features")
    with tf.GradientTape() as tape:
        parts = [
            tf.nn.relu(
                tf.nn.conv2d(tf.constant(volumes[:, number], tf.float64), convolution.kernel.value, 2, "SAME")
                + convolution.bias.value
            )
            for number in range(2)
        ]
        maps = tf.stack(parts, 1) if resize == "masks" else tf.stack([enlarged(part) for part in parts], 1)
        outputs = backbone(tf.constant(volumes, tf.float64))
        term = focus(maps, HAS_MASK[:, None] * np.ones((6, 4)), cells(masks) if resize == "masks" else masks)
        loss = tf.reduce_mean(entropy_of(outputs, labels, "multi_class") + term)
    gradients = tape.gradient(loss, backbone.trainable_weights)
    model = CFCNModel(slices(), variant="F", layer="features", resize=resize)
    logs, followed = step(model, volumes, y_of(labels, masks, HAS_MASK))
    np.testing.assert_allclose(logs["loss"], loss, rtol=2e-6)
    np.testing.assert_allclose(logs["causal_focus_loss"], np.mean(term), rtol=2e-6)
    np.testing.assert_allclose(logs["dead_maps"], dead(tf.stack(parts, 1).numpy(), np.ones((6, 4))).mean(), rtol=1e-6)
    for own, gradient in zip(followed, gradients, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-4, atol=2e-6)
    for wrong in (masks[:, :1], MASK, masks.repeat(2, -1)):
        with pytest.raises(InvalidArgument, match=r"`y\['mask'\]`: expected shape \(N, 2, any, any, 1\)"):
            model.train_on_batch(volumes, y_of(labels, wrong, None))
    model.run_eagerly = False
    model.fit(volumes, y_of(labels, masks, HAS_MASK), batch_size=3, verbose=0)


def test_the_gradient_is_the_one_that_differences_show(classifier, images):
    model = CFCNModel(classifier(dtype="float64", activation="sigmoid"), alpha=3.0)
    model.backbone.get_layer("class_maps").bias.assign([1.0] * 3)  # no map close to being dead
    targets = Targets(
        tf.constant(ROWS), tf.zeros(6, tf.int64), tf.ones(6), tf.constant(PER_LABEL), tf.constant(FLAGS_PER_LABEL)
    )

    def loss() -> tf.Tensor:
        objective = model.objective(tf.constant(images, tf.float64), targets, training=True)
        (term,) = objective.terms.values()
        weight = tf.cast(term.weight, tf.float64)
        return tf.reduce_mean(entropy_of(objective.outputs, ROWS, "multi_label") + weight * term.loss)

    weights = [weight.value for weight in model.trainable_weights]
    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, weights)
    direction = [np.random.default_rng(3).normal(size=weight.shape) for weight in weights]
    values = []
    for share in (1e-6, -2e-6):
        for weight, along in zip(weights, direction, strict=True):
            weight.assign_add(share * along)
        values.append(float(loss()))
    slope = sum(float(tf.reduce_sum(gradient * along)) for gradient, along in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(slope, (values[0] - values[1]) / 2e-6, rtol=1e-5)


def test_alpha_rises_after_the_warm_up_and_can_be_set(classifier, images, labels):
    traces = []

    class Counted(CFCNModel):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Any:
            traces.append(training)
            return super().objective(images, targets, training)

    model = Counted(classifier(), alpha=2.0, warm_up_epochs=1, ramp_epochs=1)
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    y = y_of(labels, MASK, HAS_MASK)
    history = model.fit(images, y, epochs=4, batch_size=3, shuffle=False, verbose=0).history
    term = history["causal_focus_loss"][-1]
    added = np.array(history["loss"]) - np.array(history["classification_loss"])
    np.testing.assert_allclose(added, np.array([0, 1, 2, 2]) * term, rtol=1e-5)
    assert history["causal_focus_loss"][0] == 0
    assert traces == [True]
    model.set_parameter("alpha", 5.0)
    logs = model.train_on_batch(images, y, return_dict=True)
    np.testing.assert_allclose(logs["loss"] - logs["classification_loss"], 5 * logs["causal_focus_loss"], rtol=1e-5)
    assert sum(traces) == len(traces) <= 2  # a batch of six after batches of three
    with pytest.raises(InvalidArgument, match="`alpha`: expected a finite number of at least 0; received -1"):
        model.set_parameter("alpha", -1)


def test_class_weights_with_masks_are_refused_in_plain_words(classifier, images, labels):
    model = CFCNModel(classifier())
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(InvalidArgument, match=r"`class_weight`: expected None where.*as `sample_weight`"):
        model.fit(images, y_of(labels, MASK, HAS_MASK), class_weight={0: 1.0, 1: 2.0, 2: 1.0}, verbose=0)


def test_every_argument_is_saved(images, labels, tmp_path):
    options = {
        **{"alpha": 0.3, "variant": "F", "layer": "first", "resize": "maps", "multi_label": False},
        **{"warm_up_epochs": 2, "ramp_epochs": 3},
    }
    model = CFCNModel(fully_connected(), **options)
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", run_eagerly=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert options.items() <= loaded.get_config().items()
    loaded.run_eagerly = True
    y = y_of(labels, MASK, HAS_MASK)
    expected = model.fit(images, y, epochs=4, initial_epoch=3, shuffle=False, verbose=0).history
    assert loaded.fit(images, y, epochs=4, initial_epoch=3, shuffle=False, verbose=0).history == expected


@pytest.mark.parametrize(
    ("name", "value", "base"),
    [
        ("variant", "F", {}),
        ("layer", "features", {"variant": "F"}),
        ("resize", "maps", {}),
        ("alpha", 2.0, {}),
    ],
)
def test_every_argument_changes_the_training(classifier, images, labels, name, value, base):
    y = y_of(labels, MASK, HAS_MASK)
    (_, followed), (_, other) = (
        step(CFCNModel(classifier(), **options), images, y) for options in (base, {**base, name: value})
    )
    assert max(np.abs(one - two).max() for one, two in zip(followed, other, strict=True)) > 1e-3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"variant": "B"}, "`variant`: expected one of C, F; received 'B'"),
        ({"resize": "both"}, "`resize`: expected one of masks, maps; received 'both'"),
        ({"layer": "features"}, "`layer`: expected None with variant='C'; received 'features'. Variant C takes the cl"),
        ({"variant": "F", "layer": 2}, "`layer`: expected the name or path of a layer, or None; received 2"),
        ({"variant": "F", "layer": "x"}, "`layer`: expected one of .*class_maps.*; received 'x'"),
        ({"variant": "F", "layer": "logits"}, "`layer`: expected a layer whose output is .*; received 'logits'"),
        ({"ramp_epochs": 0.5}, "`ramp_epochs`: expected an integer of at least 0; received 0.5"),
    ],
)
def test_arguments_outside_their_range(classifier, options, expected):
    with pytest.raises(InvalidArgument, match=f"Invalid value for {expected}"):
        CFCNModel(classifier(), **options)


def test_one_unit_has_no_map_for_both_classes(classifier):
    backbone = classifier(units=1, activation="sigmoid")
    expected = (
        "`backbone`: expected a head of at least 2 units with variant='C'; received one unit. One map cannot spea"
    )
    with pytest.raises(InvalidArgument, match=expected):
        CFCNModel(backbone)
    assert CFCNModel(backbone, variant="F").head == "binary"


def test_backbone_without_feature_maps():
    backbone = keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(3)])
    with pytest.raises(UnsupportedOperation, match="No layer of the model gives feature maps"):
        CFCNModel(backbone, variant="F")


@pytest.mark.parametrize("eager", [True, False])
def test_wrong_number_of_masks_or_flags(classifier, images, labels, eager):
    def model(activation: str, **options: Any) -> keras.Model:
        built = CFCNModel(classifier(activation=activation), **options)
        built.compile("sgd", LOSSES[built.head], run_eagerly=eager)
        return built

    one = r"`y\['mask'\]`: expected shape \(N, any, any, 1\); received shape \(\w, 8, 8, 3\)"
    two = r"`y\['mask'\]`: expected 1 channel, or one for each of the 3 labels; received 2"
    for given, y, expected in (
        (model("softmax"), y_of(labels, PER_LABEL, None), one),
        (model("sigmoid", variant="F"), y_of(ROWS, PER_LABEL, None), one),
        (model("sigmoid"), y_of(ROWS, PER_LABEL[..., :2], None), two),
        (model("softmax"), y_of(labels, MASK, FLAGS_PER_LABEL), r"`y\['has_mask'\]`: expected shape \(N,\); received"),
        (model("sigmoid"), y_of(ROWS, MASK, ROWS[:, :2]), r"`y\['has_mask'\]`: expected shape \(N,\) or \(N, 3\); rec"),
    ):
        with pytest.raises(InvalidArgument, match=expected):
            given.fit(images, y, verbose=0)


def test_further_batches_of_the_same_shape_are_not_traced_again(classifier, images, labels):
    traces = []

    class Counted(CFCNModel):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Any:
            traces.append(training)
            return super().objective(images, targets, training)

    model = Counted(classifier(), resize="maps")
    model.compile("sgd", "sparse_categorical_crossentropy")
    y = y_of(labels, MASK, HAS_MASK)
    model.fit(images, y, batch_size=2, epochs=2, validation_data=(images, y), verbose=0)
    model.fit(images, y, batch_size=2, verbose=0)
    assert sorted(traces) == [False, True]


def test_a_multi_view_network_is_focused_on_its_slices(images, labels):
    volumes, masks = np.stack([images, images[::-1]], 1), np.stack([MASK, 1 - MASK], 1)
    keras.utils.set_random_seed(0)
    model = CFCNModel(multi_view((2, 8, 8, 3), 3, blocks=((4,),)), variant="F")
    convolution = model.backbone.get_layer("slice_network").get_layer("block1_conv1")
    maps = np.maximum(np.stack([convolution(volumes[:, number]) for number in range(2)], 1), 0)
    expected = focus(tf.constant(maps), np.ones((6, 4)), masks).numpy().mean()
    logs, _ = step(model, volumes, y_of(labels, masks, None))
    np.testing.assert_allclose(logs["causal_focus_loss"], expected, rtol=1e-5)
