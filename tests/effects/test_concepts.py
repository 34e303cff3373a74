"""A concept autoencoder: its loss and its step against NumPy, a classifier that stays as it was, saving, training."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.effects.concepts import ConceptAutoencoder
from tfcausal.models.cfcn import CFCNModel

L = keras.layers
RNG = np.random.default_rng(0)


def simple(units: int = 3, head: str | None = "softmax", factor: float = 1.0) -> keras.Model:
    """One convolution to six channels, which the logits are linear in; `factor` scales the channels alone."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 5, 2))
    maps = L.Conv2D(6, 3, padding="same", activation="relu", name="maps")(inputs)
    logits = L.Dense(units, name="logits")(L.GlobalAveragePooling2D(name="pooled")(maps))
    model = keras.Model(inputs, logits if head is None else L.Activation(head)(logits))
    kernel, bias, weights, offset = model.get_weights()
    model.set_weights([factor * kernel, factor * (bias + 0.1), 8 * weights / factor, offset + 0.2])
    return model


def residual() -> keras.Model:
    """Batch norm, dropout, a shortcut, a shared layer, a nested model, an activity regulariser, a frozen layer."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 5, 2))
    x = L.Conv2D(6, 3, padding="same", name="stem", activity_regularizer="l2")(inputs)
    shared = L.Conv2D(6, 1, name="shared")
    x = L.Add(name="sum")([shared(x), L.BatchNormalization(name="norm", momentum=0.5)(L.ReLU()(shared(x)))])
    inner = keras.Input((6, 5, 6))
    y = L.Conv2D(8, 3, activation="relu", name="conv", trainable=False)(inner)
    nested = keras.Model(inner, L.Concatenate(name="both")([y, L.Cropping2D(1)(inner)]), name="nested")
    x = L.Dropout(0.5)(L.GlobalAveragePooling2D(name="pooled")(nested(x)))
    return keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(x))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return RNG.normal(size=(12, 6, 5, 2)).astype("float32")


def convolved(values: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
    kernel, bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    if kernel.ndim == 2:
        return values @ kernel + bias
    side, (height, width) = kernel.shape[0], values.shape[1:3]
    left = (side - 1) // 2
    padded = np.pad(values, ((0, 0), (left, side - 1 - left), (left, side - 1 - left), (0, 0)))
    parts = (padded[:, y : y + height, x : x + width] @ kernel[y, x] for y in range(side) for x in range(side))
    return sum(parts) + bias


def loss_by_numpy(autoencoder, images, weights=(0.5, 0.4, 0.1)) -> tuple[float, ...]:
    """Total, shallow, deep and interpretability loss for `simple`, written down once more."""
    model = autoencoder.network
    activation = np.maximum(convolved(images.astype(np.float64), model.get_layer("maps")), 0)
    scale = 2.0 ** np.round(np.log2(np.abs(activation).mean()))
    divided = activation / scale
    code = convolved(convolved(divided, autoencoder.encoder[0]), autoencoder.encoder[1])
    rebuilt = convolved(convolved(code, autoencoder.decoder[0]), autoencoder.decoder[1])
    shallow = np.abs(rebuilt - divided).mean()
    head = model.get_layer("logits")
    first, second = (convolved(values.mean(axis=(1, 2)), head) for values in (activation, scale * rebuilt))
    if autoencoder.head == "multi_class":
        p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (first, second))
        deep = (p * np.log(p / q)).sum(axis=1).mean()
    else:
        p, q = (1 / (1 + np.exp(-z)) for z in (first, second))
        deep = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1).mean()
    relative = code / np.sqrt((code**2).mean(axis=(0, 1, 2)) + 1e-6)
    smooth = np.abs(np.diff(relative, axis=1)).mean() + np.abs(np.diff(relative, axis=2)).mean()
    penalty = smooth + np.abs(relative).mean()
    return sum(np.multiply(weights, (shallow, deep, penalty))), shallow, deep, penalty


def shaken(autoencoder, seed=3):
    """The same autoencoder with random weights."""
    random = np.random.default_rng(seed)
    for layer in (*autoencoder.encoder, *autoencoder.decoder):
        layer.set_weights([weight + 0.1 * random.normal(size=weight.shape) for weight in layer.get_weights()])
    return autoencoder


def eager(model, layer, concepts, **options) -> ConceptAutoencoder:
    """An autoencoder for a few steps, which are done before they would be traced."""
    autoencoder = ConceptAutoencoder(model, layer, concepts, **options)
    autoencoder.compile(run_eagerly=True)
    return autoencoder


NAMES = ("loss", "shallow_loss", "deep_loss", "interpretability_loss")


@pytest.mark.parametrize(
    ("units", "head", "multi_label"),
    [
        (3, "softmax", None),
        (3, None, None),
        (3, "sigmoid", None),
        (3, None, True),
        (1, "sigmoid", None),
        (1, None, None),
    ],
)
def test_the_loss_is_that_of_numpy(images, units, head, multi_label):
    model = simple(units, head)
    weights = {"shallow_weight": 0.7, "deep_weight": 0.3, "interpretability_weight": 0.2}
    autoencoder = shaken(eager(model, "maps", 4, hidden=5, multi_label=multi_label, **weights))
    expected = loss_by_numpy(autoencoder, images, (0.7, 0.3, 0.2))
    logs = autoencoder.train_on_batch(images, return_dict=True)
    np.testing.assert_allclose([logs[name] for name in NAMES], expected, rtol=2e-5)
    assert expected[2] > 0.01  # the answers differ


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
def test_a_step_follows_the_gradient_of_the_loss(images, kernel_size):
    autoencoder = shaken(ConceptAutoencoder(simple(), "maps", 4, hidden=5, kernel_size=kernel_size))
    autoencoder.compile(keras.optimizers.SGD(1.0), run_eagerly=kernel_size != 3)
    layers = (*autoencoder.encoder, *autoencoder.decoder)
    before = [layer.get_weights() for layer in layers]
    autoencoder.train_on_batch(images)
    after = [layer.get_weights() for layer in layers]
    random = np.random.default_rng(0)
    for place, layer in enumerate(layers):
        directions = [random.normal(size=weight.shape) for weight in before[place]]
        values = []
        for step in (1e-3, -1e-3):
            for other, weights in zip(layers, before, strict=True):
                other.set_weights(weights)
            moved = zip(before[place], directions, strict=True)
            layer.set_weights([weight + step * direction for weight, direction in moved])
            values.append(loss_by_numpy(autoencoder, images)[0])
        changes = zip(before[place], after[place], directions, strict=True)
        slope = sum(((old - new) * direction).sum() for old, new, direction in changes)
        np.testing.assert_allclose(slope, (values[0] - values[1]) / 2e-3, rtol=0.02, atol=2e-4)


def test_training_leaves_the_classifier_as_it_was(images):
    model = residual()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, np.arange(12) % 3, verbose=0)
    layers = [model, *model._flatten_layers(include_self=False)]

    def state():
        flags = [(layer.trainable, layer.name, sorted(vars(layer)), len(layer._inbound_nodes)) for layer in layers]
        metrics = [variable.numpy().tobytes() for variable in model.metrics_variables]
        losses = [id(loss) for layer in layers for loss in layer._losses]
        return flags, metrics, [weight.numpy().tobytes() for weight in model.weights], losses

    before = state()
    autoencoder = ConceptAutoencoder(model, "sum", concepts=4)
    autoencoder.fit(images, epochs=2, batch_size=4, verbose=0, validation_data=images)
    autoencoder.predict(images, verbose=0)
    autoencoder.agreement(images)
    autoencoder.trainable = False
    assert state() == before
    autoencoder.trainable = True
    own = [weight for layer in (*autoencoder.encoder, *autoencoder.decoder) for weight in layer.weights]
    assert {id(weight) for weight in autoencoder.trainable_weights} == {id(weight) for weight in own}
    assert not {id(weight) for weight in autoencoder.weights} & {id(weight) for weight in model.weights}
    assert autoencoder.network is model


class WithGradient(L.Layer):
    """The identity, which counts how often a gradient goes through it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.times = 0

    def call(self, inputs):
        @tf.custom_gradient
        def identity(values):
            def gradient(upstream):
                self.times += 1
                return upstream

            return tf.identity(values), gradient

        return identity(inputs)


def test_gradients_pass_through_what_lies_behind_the_layer_alone(images):
    before, behind = WithGradient(name="before"), WithGradient(name="behind")
    model = keras.Sequential([keras.Input((6, 5, 2)), L.Conv2D(4, 3), before, L.ReLU(name="maps"), behind])
    model.add(L.GlobalAveragePooling2D())
    model.add(L.Dense(3))
    ConceptAutoencoder(model, "maps", concepts=2).fit(images, verbose=0)
    assert (before.times, behind.times) == (0, 1)
    behind.times = 0
    ConceptAutoencoder(model, "maps", concepts=2, deep_weight=0).fit(images, verbose=0)
    assert behind.times == 0


def test_a_step_is_traced_once(images):
    calls = []

    def penalty(code, before, behind):
        calls.append(code.shape)
        return tf.reduce_mean(code**2, axis=(1, 2, 3))

    autoencoder = ConceptAutoencoder(simple(), "maps", 4, interpretability=penalty)
    autoencoder.fit(images, batch_size=5, epochs=3, verbose=0)
    autoencoder.fit(images[:7], batch_size=5, verbose=0)
    assert len(calls) == 1


def trained_with(images, model=None, layer="maps", epochs=1, **options):
    model = model or simple()
    keras.utils.set_random_seed(5)
    autoencoder = eager(model, layer, **{"concepts": 4, **options})
    history = autoencoder.fit(images, epochs=epochs, batch_size=6, shuffle=False, verbose=0).history
    return autoencoder, history


@pytest.fixture(scope="module")
def plain(images):
    """One epoch of training with every option left as it is."""
    return trained_with(images)


@pytest.mark.parametrize(
    "option",
    [
        {"concepts": 3},
        {"hidden": 8},
        {"kernel_size": 1},
        {"activation": "tanh"},
        {"shallow_weight": 0.6},
        {"deep_weight": 0.9},
        {"interpretability_weight": 0.3},
        {"interpretability": "tv"},
        {"interpretability": {"tv": 2.0, "l1": 1.0}},
        {"interpretability": "tv_texture"},
        {"interpretability": ["entropy", "l1"]},
        {"interpretability": lambda code, before, behind: tf.reduce_mean(before * behind, axis=(1, 2, 3))},
    ],
)
def test_every_option_changes_what_is_learnt(images, plain, option):
    plain = plain[0]
    other, history = trained_with(images, **option)
    shapes = [[weight.shape for weight in model.trainable_weights] for model in (plain, other)]
    if shapes[0] == shapes[1]:
        pairs = zip(plain.get_weights(), other.get_weights(), strict=True)
        assert max(np.abs(first - second).max() for first, second in pairs) > 1e-5
    assert set(history) == set(NAMES)


def test_a_term_without_weight_is_left_out(images):
    _, history = trained_with(images, deep_weight=0)
    assert set(history) == {"loss", "shallow_loss", "interpretability_loss"}
    _, history = trained_with(images, interpretability_weight=0)
    assert set(history) == {"loss", "shallow_loss", "deep_loss"}
    _, history = trained_with(images, shallow_weight=0, interpretability_weight=0)
    assert set(history) == {"loss", "deep_loss"}
    np.testing.assert_allclose(history["loss"], 0.4 * np.array(history["deep_loss"]), rtol=1e-5)


def set_to_identity(autoencoder, channels):
    """Every channel a concept of its own."""
    for layer in (*autoencoder.encoder, *autoencoder.decoder):
        kernel, bias = (np.zeros(weight.shape) for weight in layer.get_weights())
        centre = kernel[(1,) * (kernel.ndim - 2)]
        centre[:channels, :channels] = np.eye(channels)[: centre.shape[0], : centre.shape[1]]
        layer.set_weights([kernel, bias])
    autoencoder.trained = True


@pytest.mark.parametrize(
    ("layer", "channels"),
    [("sum", 6), ("norm", 6), ("shared:2", 6), ("nested/conv", 8), ("nested", 14), ("pooled", 14), ("re_lu", 6)],
)
def test_the_identity_gives_the_answers_of_the_classifier(images, layer, channels):
    model = residual()
    layer = next(one.name for one in model.layers if one.name.startswith("re_lu")) if layer == "re_lu" else layer
    autoencoder = ConceptAutoencoder(model, layer, concepts=channels)
    set_to_identity(autoencoder, channels)
    downstream = autoencoder.downstream
    known = downstream.known(tf.constant(images))
    activation = known[downstream.position]
    codes = autoencoder.encode(activation)
    np.testing.assert_array_equal(codes, activation)
    np.testing.assert_array_equal(autoencoder.decode(codes), activation)
    np.testing.assert_array_equal(autoencoder.logits_from_codes(known, codes), downstream.logits(known))
    np.testing.assert_allclose(autoencoder(images), model(images, training=False), atol=1e-6)
    np.testing.assert_allclose(autoencoder.predict(images, verbose=0), model(images, training=False), atol=1e-6)
    agreement = autoencoder.agreement(images)
    assert (agreement.same_answer.value, agreement.divergence.value, agreement.faithful) == (1.0, 0.0, True)
    # Zeroing a code is zeroing a channel.
    without = codes.numpy()
    without[..., 2] = 0
    expected = downstream.logits(known, tf.constant(without))
    np.testing.assert_array_equal(autoencoder.logits_from_codes(known, tf.constant(without)), expected)
    assert np.abs(expected - downstream.logits(known)).max() > 1e-4


def test_training_starts_at_a_projection(images):
    """With as many concepts as channels nothing is lost; with fewer, what is left is an orthogonal projection."""
    model = simple()
    for concepts, kernel_size, hidden in ((6, 3, 32), (6, 2, 7), (4, 3, 32), (4, 4, 5)):
        autoencoder = ConceptAutoencoder(model, "maps", concepts, hidden, kernel_size)
        known = autoencoder.downstream.known(tf.constant(images))
        activation = known[autoencoder.downstream.position]
        rebuilt = autoencoder.decode(autoencoder.encode(activation))
        again = autoencoder.decode(autoencoder.encode(rebuilt))
        np.testing.assert_allclose(again, rebuilt, atol=1e-5)
        lost = np.linalg.matrix_rank(np.reshape(activation - rebuilt, (-1, 6)), tol=1e-3)
        assert lost == 6 - concepts


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-10, 1e3, 1e-3])
def test_the_scale_of_the_activation_does_not_matter(images, plain, factor):
    """With powers of two not even the rounding differs."""
    plain, history = plain
    other, scaled = trained_with(images, simple(factor=factor), epochs=2)
    exact = np.log2(factor) % 1 == 0
    for name in NAMES:
        np.testing.assert_allclose(scaled[name][:1], history[name], rtol=1e-5 if exact else 0.5)
    if exact:
        assert float(other.scale) == factor * float(plain.scale)
    assert scaled["loss"][-1] < scaled["loss"][0]


def test_the_scale_is_measured_once(images):
    autoencoder = eager(simple(), "maps", 4)
    assert float(autoencoder.scale) == 1.0
    autoencoder.evaluate(images, verbose=0)
    assert float(autoencoder.scale) == 1.0
    activation = np.asarray(autoencoder.downstream.known(tf.constant(images))[autoencoder.downstream.position])
    autoencoder.train_on_batch(images)
    expected = 2.0 ** np.round(np.log2(np.abs(activation).mean()))
    assert float(autoencoder.scale) == expected
    autoencoder.train_on_batch(1000 * images)
    assert float(autoencoder.scale) == expected


def test_activations_that_are_all_zero_are_waited_out(images):
    model = simple()
    model.get_layer("maps").bias.assign(np.zeros(6))
    autoencoder = eager(model, "maps", 4)
    logs = autoencoder.train_on_batch(0 * images, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    assert float(autoencoder.scale) == 1.0
    autoencoder.train_on_batch(100 * images)
    assert float(autoencoder.scale) > 4
    assert all(np.isfinite(weight).all() for weight in autoencoder.get_weights())


@pytest.mark.parametrize("kind", ["images", "images and labels", "arrays"])
def test_labels_are_left_aside(images, kind):
    images = images[:10]
    plain, history = trained_with(images)
    model = simple()
    keras.utils.set_random_seed(5)
    autoencoder = eager(model, "maps", 4)
    data = tf.data.Dataset.from_tensor_slices(images if kind == "images" else (images, np.arange(10)))
    if kind == "arrays":
        fitted = autoencoder.fit(images, np.arange(10), batch_size=6, shuffle=False, verbose=0)
    else:
        fitted = autoencoder.fit(data.batch(6), shuffle=False, verbose=0)
    assert {name: values[0] for name, values in fitted.history.items()} == pytest.approx(
        {name: values[0] for name, values in history.items()}, rel=1e-5
    )
    np.testing.assert_allclose(autoencoder.codes(images), plain.codes(images), atol=1e-5)


def test_whole_numbers_are_images(images):
    pixels = RNG.integers(0, 255, images.shape).astype("uint8")
    first, history = trained_with(pixels)
    second, other = trained_with(pixels.astype("float32"))
    assert history == other
    np.testing.assert_array_equal(first.codes(pixels), second.codes(pixels))


def test_default_and_chosen_optimizer(images):
    autoencoder = ConceptAutoencoder(simple(), "maps", 4)
    autoencoder.fit(images, verbose=0)
    assert isinstance(autoencoder.optimizer, keras.optimizers.Adam)
    assert float(autoencoder.optimizer.learning_rate) == pytest.approx(1e-3)
    chosen = ConceptAutoencoder(simple(), "maps", 4)
    chosen.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    chosen.fit(images, verbose=0)
    assert isinstance(chosen.optimizer, keras.optimizers.SGD)


def test_batches_do_not_change_codes(images):
    autoencoder, _ = trained_with(images)
    codes = autoencoder.codes(images)
    assert codes.shape == (12, 6, 5, 4)
    assert codes.dtype == np.float32
    known = autoencoder.downstream.known(tf.constant(images))
    np.testing.assert_allclose(codes, autoencoder.encode(known[autoencoder.downstream.position]), atol=1e-6)
    for size in (1, 5, 64):
        np.testing.assert_allclose(autoencoder.codes(images, batch_size=size), codes, atol=1e-6)
        agreement = autoencoder.agreement(images, batch_size=size)
        assert agreement.divergence.value == pytest.approx(autoencoder.agreement(images).divergence.value, abs=1e-6)
    autoencoder.fit(images, verbose=0)
    assert np.abs(autoencoder.codes(images) - codes).max() > 1e-4  # those of the weights as they are now


@keras.saving.register_keras_serializable(package="tests")
def squared(code, before, behind):
    return tf.reduce_mean(before**2, axis=(1, 2, 3))


def cfcn() -> keras.Model:
    return CFCNModel(simple(), variant="F", layer="maps")


@pytest.mark.parametrize(
    ("build", "layer", "option"),
    [
        (residual, "nested/conv", {}),
        (residual, "pooled", {"interpretability": {"l1": 2.0}, "activation": "relu"}),
        (simple, "maps", {"interpretability": squared, "deep_weight": 0.0}),
        (cfcn, "maps", {}),
    ],
)
def test_saved_and_loaded(images, tmp_path, build, layer, option):
    model = build()
    if build is not cfcn:
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        model.train_on_batch(images, np.arange(12) % 3)
    autoencoder, _ = trained_with(images, model, layer, **option)
    autoencoder.save(tmp_path / "concepts.keras")
    loaded = keras.models.load_model(tmp_path / "concepts.keras")
    assert isinstance(loaded, ConceptAutoencoder)
    assert loaded.trained
    for first, second in ((autoencoder, loaded), (autoencoder.network, loaded.network)):
        pairs = zip(first.get_weights(), second.get_weights(), strict=True)
        assert all((one == other).all() for one, other in pairs)
    assert loaded.network is not model
    np.testing.assert_array_equal(loaded.codes(images), autoencoder.codes(images))
    # Training goes on where it was, with the state of the optimizer.
    logs = [one.fit(images, epochs=2, shuffle=False, verbose=0).history for one in (autoencoder, loaded)]
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[1][name], values, rtol=1e-5)
    np.testing.assert_allclose(loaded.codes(images), autoencoder.codes(images), atol=1e-5)


def test_the_layer_itself_is_found_again(images, tmp_path):
    model = residual()
    layer = model.get_layer("nested").get_layer("conv")
    autoencoder = ConceptAutoencoder(model, layer, concepts=3)
    assert autoencoder.layer in ("conv", "nested/conv")
    autoencoder.save(tmp_path / "concepts.keras")
    loaded = keras.models.load_model(tmp_path / "concepts.keras")
    assert loaded.downstream.position == autoencoder.downstream.position
    assert not loaded.trained


def test_volumes_and_features(images):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 6, 5, 2))
    x = L.Conv3D(5, 3, padding="same", activation="relu", name="maps")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling3D(name="pooled")(x)))
    volumes = RNG.normal(size=(4, 3, 6, 5, 2)).astype("float32")
    for layer, shape in (("maps", (4, 3, 6, 5, 2)), ("pooled", (4, 2))):
        autoencoder = eager(model, layer, concepts=2)
        history = autoencoder.fit(volumes, epochs=8, verbose=0).history
        assert history["loss"][-1] < history["loss"][0]
        assert autoencoder.codes(volumes).shape == shape


def test_images_of_any_size(images):
    inputs = keras.Input((None, None, 2))
    x = L.Conv2D(5, 3, name="maps")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    autoencoder = eager(model, "maps", concepts=2)
    autoencoder.fit(images, verbose=0)
    assert autoencoder.codes(images[:, :4]).shape == (12, 2, 3, 2)


def test_a_classifier_in_mixed_precision(images):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 5, 2))
    x = L.Conv2D(5, 3, dtype="mixed_float16", name="maps")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D(dtype="mixed_float16")(x)))
    autoencoder = ConceptAutoencoder(model, "maps", concepts=2)
    history = autoencoder.fit(images, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert {weight.dtype for weight in autoencoder.trainable_weights} == {"float32"}


def test_training_makes_the_classifier_answer_through_the_autoencoder():
    """Classes that differ in the direction of stripes."""
    random = np.random.default_rng(0)
    labels = np.arange(240) % 3
    y, x = np.mgrid[:12, :12]
    waves = np.stack([np.sin(1.5 * x), np.sin(1.5 * y), np.sin(1.1 * (x + y))])
    shifted = np.stack([np.roll(waves[label], random.integers(0, 12), axis=(0, 1)) for label in labels])
    images = (shifted[..., None] + random.normal(scale=0.5, size=(240, 12, 12, 1))).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 1))
    x = L.Conv2D(12, 5, activation="relu", name="first")(inputs)
    x = L.Conv2D(16, 3, activation="relu", name="second")(x)
    model = keras.Model(inputs, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(x)))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[:180], labels[:180], epochs=6, verbose=0)
    assert model.evaluate(images[180:], labels[180:], verbose=0)[1] > 0.9
    for layer in ("first", "second"):
        keras.utils.set_random_seed(1)
        autoencoder = ConceptAutoencoder(model, layer, concepts=4, hidden=8)
        autoencoder.trained = True
        before = autoencoder.agreement(images[180:])
        history = autoencoder.fit(images[:180], batch_size=12, epochs=8, verbose=0).history
        agreement = autoencoder.agreement(images[180:])
        assert history["loss"][-1] < 0.7 * history["loss"][0]
        assert agreement.same_answer.value > 0.9
        assert agreement.divergence.value < 0.5 * before.divergence.value
        assert agreement.faithful
