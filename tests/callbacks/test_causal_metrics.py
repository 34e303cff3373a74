import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.callbacks import CausalMetrics
from tfcausal.callbacks.cause_measurement import CauseMeasurement, salient_area, samples_of
from tfcausal.errors import InvalidArgument
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.gain import GAINModel
from tfcausal.saliency.registry import get_explainer
from tfcausal.saliency.wbp import WBP

L = keras.layers
QUIET = {"verbose": 0, "shuffle": False, "batch_size": 6}
FROZEN = keras.optimizers.SGD(0.0)


def linear(units=2, activation="softmax", shape=(2, 2, 2)):
    """One dense layer on the pixels; its WBP map is the weight of every pixel times the pixel."""
    keras.utils.set_random_seed(3)
    dense = L.Dense(units, activation=activation, use_bias=False, kernel_initializer="random_normal")
    model = keras.Sequential([keras.Input(shape), L.Flatten(), dense])
    dense.set_weights([20 * weight for weight in dense.get_weights()])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model, dense.get_weights()[0].astype(np.float64)


def logs_of(model, callback, images=None, targets=None, epochs=1, **options):
    """What the callback writes into the history of a training that leaves the weights as they are."""
    shape = model.input_shape if images is None else None
    images = np.zeros((2, *shape[1:])) if images is None else images
    targets = np.zeros((2, model.output_shape[-1])) if targets is None else targets
    history = model.fit(images, targets, epochs=epochs, callbacks=[callback], **{**QUIET, **options}).history
    return {name: values for name, values in history.items() if name.startswith("val_")}


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def twin(images, masks, weights, signed, probability, threshold=0.25, sharpness=50.0, value=0.0):
    """The values by NumPy in float64: `signed` has the weights of every image's true class, (N, pixels)."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    maps = (flat * signed).reshape(images.shape)
    positive = np.maximum(maps.sum(axis=-1, keepdims=True), 0)
    total = positive.sum(axis=(1, 2, 3))
    energy = np.array([(p * m).sum() / t if t > 0 else np.nan for p, m, t in zip(positive, masks, total, strict=True)])
    normal = positive / np.maximum(positive.max(axis=(1, 2, 3), keepdims=True), 1e-300)
    salient = 1 / (1 + np.exp(-sharpness * (normal - threshold)))
    whole = probability(flat @ weights)
    without = lambda mask: probability((images - mask * (images - value)).reshape(len(images), -1) @ weights)
    area = np.where(np.isnan(energy), np.nan, masks.mean(axis=(1, 2, 3)))
    return {
        "val_mask_energy": energy,
        "val_mask_energy_chance": area,
        "val_probability_drop_cause_removed": whole - without(masks),
        "val_probability_drop_salient_removed": whole - without(salient),
        "val_mask_coverage": salient.mean(axis=(1, 2, 3)),
    }


@pytest.fixture
def batch():
    random = np.random.default_rng(1)
    images = random.normal(size=(7, 2, 2, 2)).astype("float32")
    masks = (random.random((7, 2, 2, 1)) > 0.5).astype("float32")
    return images, random.integers(0, 2, 7), masks


def assert_means(logs, expected, keep=slice(None)):
    assert list(logs) == list(expected)
    for name, values in expected.items():
        kept = values[keep] if name in list(expected)[:3] else values
        assert logs[name] == [pytest.approx(np.nanmean(kept), abs=2e-6)], name


@pytest.mark.parametrize("activation", ["softmax", None])
def test_a_linear_model_has_the_values_of_its_formulas(batch, activation):
    images, labels, masks = batch
    model, weights = linear(activation=activation)
    own = lambda logits: softmax(logits)[np.arange(7), labels]
    expected = twin(images, masks, weights, weights.T[labels], own)
    assert_means(logs_of(model, CausalMetrics(images, labels, masks)), expected)
    one_hot = CausalMetrics(images, np.eye(2)[labels], masks, batch_size=3)
    assert_means(logs_of(model, one_hot), expected)


def test_the_options_of_the_salient_area_and_of_the_masked_value(batch):
    images, labels, masks = batch
    model, weights = linear()
    own = lambda logits: softmax(logits)[np.arange(7), labels]
    options = {"threshold": 0.6, "sharpness": 5.0}
    expected = twin(images, masks, weights, weights.T[labels], own, **options, value=np.array([0.5, -1.0]))
    callback = CausalMetrics(images, labels, masks, masked_value=[0.5, -1.0], prefix="val_", **options)
    assert_means(logs_of(model, callback), expected)


def test_images_without_a_mask_count_only_where_none_is_needed(batch):
    images, labels, masks = batch
    model, weights = linear()
    own = lambda logits: softmax(logits)[np.arange(7), labels]
    has_mask = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    expected = twin(images, masks, weights, weights.T[labels], own)
    assert_means(logs_of(model, CausalMetrics(images, labels, masks, has_mask)), expected, keep=has_mask)
    none = logs_of(model, CausalMetrics(images, labels, masks, np.zeros(7)))
    assert np.isnan(none["val_mask_energy"]).all()
    assert np.isfinite(none["val_mask_coverage"]).all()


def test_without_masks_there_is_what_needs_none(batch):
    images, labels, masks = batch
    model, weights = linear()
    own = lambda logits: softmax(logits)[np.arange(7), labels]
    expected = twin(images, masks, weights, weights.T[labels], own)
    logs = logs_of(model, CausalMetrics(images, labels, prefix="val_look_"))
    names = ["probability_drop_salient_removed", "mask_coverage"]
    assert logs == {f"val_look_{name}": [pytest.approx(expected[f"val_{name}"].mean(), abs=2e-6)] for name in names}


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_the_maps_of_class_0_of_a_single_unit_are_its_negative(batch, activation):
    images, labels, masks = batch
    model, weights = linear(1, activation)
    signs = 2 * labels - 1
    own = lambda logits: 1 / (1 + np.exp(-signs * logits[:, 0]))
    expected = twin(images, masks, weights, signs[:, None] * weights[:, 0], own)
    assert_means(logs_of(model, CausalMetrics(images, labels, masks)), expected)


def test_every_label_of_an_image_is_a_sample_with_its_own_mask(batch):
    images, _, _ = batch
    model, weights = linear(3, "sigmoid")
    rows = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
    masks = (np.random.default_rng(2).random((7, 2, 2, 3)) > 0.5).astype("float32")
    places, classes = np.nonzero(rows)
    own = lambda logits: 1 / (1 + np.exp(-logits[np.arange(len(classes)), classes]))
    of_labels = np.stack(
        [masks[place, ..., [index]].transpose(1, 2, 0) for place, index in zip(places, classes, strict=True)]
    )
    expected = twin(images[places], of_labels, weights, weights.T[classes], own)
    assert_means(logs_of(model, CausalMetrics(images, rows, masks, batch_size=4)), expected)
    shared = twin(images[places], masks[places][..., :1], weights, weights.T[classes], own)
    assert_means(logs_of(model, CausalMetrics(images, rows, masks[..., :1])), shared)


def test_volumes_are_measured_like_tall_images():
    random = np.random.default_rng(4)
    volumes, masks = random.normal(size=(3, 2, 2, 2, 1)), random.random((3, 2, 2, 2, 1)) > 0.5
    labels = np.array([0, 1, 1])
    model, weights = linear(shape=(2, 2, 2, 1))
    own = lambda logits: softmax(logits)[np.arange(3), labels]
    tall = volumes.reshape(3, 4, 2, 1)
    expected = twin(tall, masks.reshape(tall.shape), weights, weights.T[labels], own)
    assert_means(logs_of(model, CausalMetrics(volumes, labels, masks)), expected)


def test_a_map_without_positive_saliency_counts_for_neither_energy_nor_chance():
    model = keras.Sequential([keras.Input((1, 2, 1)), L.Flatten(), L.Dense(2, kernel_initializer="ones")])
    model.compile(FROZEN, "mse")
    images = np.array([[1.0, 3.0], [-1.0, -1.0]]).reshape(2, 1, 2, 1)
    masks = np.array([[0.0, 1.0], [1.0, 1.0]]).reshape(2, 1, 2, 1)
    logs = logs_of(model, CausalMetrics(images, [0, 0], masks))
    assert logs["val_mask_energy"] == [pytest.approx(0.75)]
    assert logs["val_mask_energy_chance"] == [0.5]


def class_maps_model(activation):
    """Class maps that are the pixels plus 0, minus 10 and plus 10: of class 0 sometimes, of class 1 never positive."""
    conv = L.Conv2D(3, 1, activation=activation, name="class_maps")
    model = keras.Sequential([keras.Input((2, 2, 1)), conv, L.GlobalAveragePooling2D(), L.Softmax()])
    conv.set_weights([np.ones((1, 1, 1, 3)), np.array([0.0, -10.0, 10.0])])
    model.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy")
    return model


@pytest.mark.parametrize("activation", ["relu", None])
def test_dead_maps_are_those_of_the_true_class_without_a_positive_place(activation):
    images = np.array([[-1, -2, -1, 0.5], [-1, -1, -1, -1], [1, 1, 1, 1], [-1, -1, -1, -1]]).reshape(4, 2, 2, 1)
    plain = class_maps_model(activation)
    assert logs_of(plain, CausalMetrics(images, [0, 0, 1, 2]))["val_dead_maps"] == [0.5]
    variant_c = CFCNModel(plain)
    variant_f = CFCNModel(plain, variant="F", layer="class_maps")
    targets = {"label": np.eye(3)[[0, 0, 1, 2]], "mask": np.ones((4, 2, 2, 1))}
    for model, expected in ((variant_c, 0.5), (variant_f, (1 / 3 + 2 / 3 + 1 / 3 + 2 / 3) / 4)):
        model.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy")
        logs = model.fit(images, targets, callbacks=[CausalMetrics(images, [0, 0, 1, 2])], **QUIET).history
        assert logs["val_dead_maps"] == [pytest.approx(expected)] == logs["dead_maps"]


def test_the_last_feature_maps_of_other_networks(plain, images, labels):
    model = plain()
    model.get_layer("features").bias.assign([-100.0, 0.0, 100.0, 0.0])
    maps = keras.Model(model.input, model.get_layer("features").output).predict(images, verbose=0)
    expected = (maps.max(axis=(1, 2)) <= 0).mean()
    assert 0.2 < expected < 0.8
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    logs = logs_of(model, CausalMetrics(images, labels), images, labels)
    assert logs["val_dead_maps"] == [pytest.approx(expected)]


@pytest.mark.parametrize(
    "options",
    [
        {"saliency": "wbp", "threshold_quantile": 0.8, "masked_value": [0.1, 0.2, 0.3]},
        {"saliency": "gradient", "mask": "box"},
        {"saliency": "grad_cam", "layer": "features", "threshold": 0.4, "sharpness": 8.0},
    ],
)
def test_the_mask_of_ppi_is_the_one_it_trains_with(ppi, images, labels, options):
    """Without dropout and batch norm, training and evaluation see the same maps."""
    model = ppi(learning_rate=0.0, **options)
    history = model.fit(images, labels, callbacks=[CausalMetrics(images, labels)], **QUIET).history
    assert history["val_mask_coverage"] == [pytest.approx(history["mask_coverage"][0], abs=1e-5)]
    drop = history["val_probability_drop_salient_removed"][0]
    (trained_on,) = history["contrast_loss"]
    method, layer = model.saliency, {"layer": "features"} if "layer" in options else {}
    maps = get_explainer(method, model.backbone, **layer)(images, labels)
    mask = model.mask(tf.constant(np.abs(maps) if method == "gradient" else maps)).numpy()
    without = images - mask * (images - np.asarray(options.get("masked_value", 0.0)))
    pick = lambda batch: model.backbone.predict(batch, verbose=0)[np.arange(6), labels].astype(float)
    assert drop == pytest.approx((pick(images) - pick(without.astype("float32"))).mean(), abs=1e-5)
    assert trained_on == pytest.approx(-np.log1p(-pick(without.astype("float32"))).mean(), abs=1e-4)


def test_the_mask_of_gain_is_the_one_it_trains_with(images, labels):
    """Its maps are those of the layer that it was given, and scaled from their smallest value on, which is not 0."""
    first = L.Conv2D(4, 3, activation="relu", bias_initializer=keras.initializers.Constant(5.0), name="first")
    head = [L.Flatten(), L.Dense(3, activation="softmax")]
    backbone = keras.Sequential([keras.Input((8, 8, 3)), first, L.Conv2D(3, 3, activation="relu"), *head])
    model = GAINModel(backbone, layer="first", threshold=0.3, sharpness=4.0)
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    history = model.fit(images, labels, callbacks=[CausalMetrics(images, labels)], **QUIET).history
    assert history["val_mask_coverage"] == [pytest.approx(history["mask_coverage"][0], abs=1e-5)]


def test_the_values_follow_the_weights_and_nothing_is_traced_anew(plain, images, labels, monkeypatch):
    traces = []
    for kind, name in ((WBP, "maps"), (CauseMeasurement, "_values")):
        function = getattr(kind, name)
        counted = lambda *arguments, function=function, name=name: traces.append(name) or function(*arguments)
        monkeypatch.setattr(kind, name, counted)
    masks = np.zeros((6, 8, 8, 1))
    masks[:, 2:5, 2:5] = 1
    model, callback = plain(), CausalMetrics(images, labels, masks, batch_size=4)
    logs = model.fit(images, labels, epochs=3, callbacks=[callback], **QUIET).history
    assert sorted(traces) == ["_values", "maps"]
    assert len(set(logs["val_mask_energy"])) == 3
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    again = logs_of(model, CausalMetrics(images, labels, masks), images, labels)
    for name, (value,) in again.items():
        assert value == pytest.approx(logs[name][-1], abs=1e-5)


def test_epochs_in_between_have_no_number(batch, tmp_path):
    images, labels, masks = batch
    path = tmp_path / "history.csv"
    model, _ = linear()
    callbacks = [CausalMetrics(images, labels, masks, every=2), keras.callbacks.CSVLogger(path)]
    logs = model.fit(images, np.eye(2)[labels], epochs=4, callbacks=callbacks, **QUIET).history
    for values in [values for name, values in logs.items() if name.startswith("val_")]:
        assert np.isnan(values).tolist() == [True, False, True, False]
    assert len(path.read_text().splitlines()) == 5


def test_the_losses_of_activity_regularisation_stay_as_they_are(images, labels):
    """The passes of the measurement must not take the place of what the layers have gathered."""
    layers = [L.Flatten(), L.Dense(3, activation="softmax", activity_regularizer="l2")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model(images)
    (before,) = [float(loss) for loss in model.losses]
    area = salient_area(model, 0.25, 50.0, own_maps=True)
    CauseMeasurement(model, WBP(model), images, labels, None, np.ones(6, bool), area)()
    assert [float(loss) for loss in model.losses] == [before]


def test_samples_of_labels():
    places, classes = samples_of(np.array([2, 0]), "multi_class", 3)
    assert (places.tolist(), classes.tolist()) == ([0, 1], [2, 0])
    assert samples_of(np.array([[1.0], [0.0]]), "binary", 1)[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "head", "units", "text"),
    [
        ([0, 3], "multi_class", 3, r"expected classes in \[0, 2\]; received values from 0 to 3"),
        ([0.5, 1], "multi_class", 3, r"expected classes in \[0, 2\]; received values from 0.5 to 1"),
        (
            [[1, 1, 0]],
            "multi_class",
            3,
            r"expected classes in \[0, 2\]; received shape \(1, 3\) with values from 0 to 1",
        ),
        ([[1, 0]], "multi_class", 3, r"expected classes in \[0, 2\]; received shape \(1, 2\)"),
        ([0, 2], "binary", 1, r"expected classes in \[0, 1\]; received values from 0 to 2"),
        ([[1, 0]], "binary", 1, r"expected classes in \[0, 1\]; received shape \(1, 2\)"),
        ([0, 1], "multi_label", 3, r"expected rows of 0 and 1 of shape \(N, 3\); received shape \(2,\)"),
        ([[0, 0, 2]], "multi_label", 3, r"rows of 0 and 1 of shape \(N, 3\); .* from 0 to 2"),
        ([[0, 0, 0]], "multi_label", 3, r"rows of 0 and 1 of shape \(N, 3\); .* from 0 to 0"),
    ],
)
def test_labels_that_the_head_does_not_have(labels, head, units, text):
    with pytest.raises(InvalidArgument, match=text):
        samples_of(np.array(labels), head, units)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"images": np.zeros((0, 8, 8, 3))}, r"`images`: expected images .*received shape \(0, 8, 8, 3\)"),
        ({"labels": [0, 1]}, r"`labels`: expected 6 labels or rows; received shape \(2,\)"),
        ({"masks": np.zeros((6, 4, 4, 1))}, r"`masks`: expected shape \(6, 8, 8, 1\).*Resize them to the images"),
        ({"masks": np.full((6, 8, 8, 1), 255)}, r"`masks`: expected values in \[0, 1\].*Divide masks of 0 and 255"),
        (
            {"masks": np.ones((6, 8, 8, 1)), "has_mask": [1]},
            r"`has_mask`: expected shape \(6,\); received shape \(1,\)",
        ),
        ({"method": "wpb"}, "expected the name of a saliency method; received 'wpb'"),
        ({"every": 1.5}, "`every`: expected an integer of at least 1; received 1.5"),
        ({"threshold": 1.0}, "`threshold`: expected a number between 0 and 1; received 1.0"),
        ({"sharpness": 0}, "`sharpness`: expected a finite positive number; received 0"),
    ],
)
def test_arguments_that_are_wrong_by_themselves(images, labels, options, text):
    with pytest.raises(InvalidArgument, match=text):
        CausalMetrics(**{"images": images, "labels": labels, **options})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"images": np.zeros((6, 9, 8, 3))},
            r"expected an array of shape \(N, 8, 8, 3\); received shape \(1, 9, 8, 3\)",
        ),
        ({"labels": [0, 1, 2, 0, 1, 3]}, r"expected classes in \[0, 2\]; received values from 0 to 3"),
        ({"masks": np.ones((6, 8, 8, 3))}, "`masks`: expected 1 channel; received 3 channels"),
        ({"stripe": 2}, "expected options of wbp .*; received 'stripe'"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused_before_training(plain, images, labels, options, text):
    model = plain()
    weights = model.get_weights()
    with pytest.raises(InvalidArgument, match=text):
        model.fit(images, labels, callbacks=[CausalMetrics(**{"images": images, "labels": labels, **options})], **QUIET)
    np.testing.assert_array_equal(weights[0], model.get_weights()[0])
