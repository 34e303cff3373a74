"""Training in half precision: losses and maps in float32, scaled gradients, and about the accuracy of float32."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.ppi import PPIModel

L = keras.layers
HALF = ("mixed_float16", "mixed_bfloat16")


def images_of_a_colour(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright square in one of three colours on noise; images, labels and the squares as masks."""
    rng = np.random.default_rng(seed)
    labels, images = rng.integers(0, 3, count), rng.normal(0, 0.5, (count, 8, 8, 3)).astype("float32")
    masks = np.zeros((count, 8, 8, 1), "float32")
    for image, mask, label in zip(images, masks, labels, strict=True):
        row, column = rng.integers(0, 5, 2)
        image[row : row + 3, column : column + 3, label] += 1.2
        mask[row : row + 3, column : column + 3] = 1
    return images, labels, masks


IMAGES, LABELS, MASKS = images_of_a_colour(96, 0)


def network(policy: str, activation: str | None = "softmax") -> keras.Model:
    """A classifier that is as a whole in a precision, its head included."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3))
        x = L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
        x = L.MaxPooling2D()(L.ReLU()(L.BatchNormalization(momentum=0.8)(x)))
        x = L.Conv2D(8, 3, padding="same", activation="relu", name="features")(x)
        x = L.GlobalAveragePooling2D()(L.Conv2D(3, 1, name="class_maps")(x))
        return keras.Model(inputs, x if activation is None else L.Activation(activation)(x))
    finally:
        keras.config.set_dtype_policy(before)


def compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> Any:
    model.compile(optimizer or keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", **options)
    return model


def targets(model: keras.Model) -> Any:
    return {"label": LABELS, "mask": MASKS} if isinstance(model, CFCNModel) else LABELS


def followed(model: keras.Model) -> tuple[dict[str, float], np.ndarray]:
    """What a step reports, and the gradient that it follows."""
    before = [weight.numpy() for weight in model.trainable_weights]
    logs = model.train_on_batch(IMAGES, targets(model), return_dict=True)
    pairs = zip(before, model.trainable_weights, strict=True)
    return logs, np.concatenate([(start - weight.numpy()).ravel() for start, weight in pairs])


MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "wbp": (PPIModel, {}),
    "gradient": (PPIModel, {"saliency": "gradient", "mask": "box", "threshold": 0.5, "masked_value": [0.1, 0.2, 0.3]}),
    "grad_cam": (PPIModel, {"saliency": "grad_cam", "layer": "features", "regularised": "all_classes"}),
    "CFCN": (CFCNModel, {}),
    "CFCN-F": (CFCNModel, {"variant": "F", "resize": "maps"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_follows_the_gradient_of_float32(name):
    kind, options = MODELS[name]
    logs, gradient = followed(compiled(kind(network("float32"), **options), run_eagerly=True))
    for policy, precision, alike in (("mixed_float16", 2e-3, 0.995), ("mixed_bfloat16", 2e-2, 0.97)):
        model = compiled(kind(network(policy), **options), run_eagerly=True)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
        own_logs, own = followed(model)
        assert own_logs.keys() == logs.keys()
        for key, value in logs.items():
            np.testing.assert_allclose(own_logs[key], value, rtol=precision, atol=precision, err_msg=key)
        assert own @ gradient > alike * np.linalg.norm(own) * np.linalg.norm(gradient)
        np.testing.assert_allclose(np.linalg.norm(own), np.linalg.norm(gradient), rtol=0.06)
        assert {variable.dtype for tracker in model.trackers.values() for variable in tracker.variables} == {"float32"}


@pytest.mark.parametrize("policy", HALF)
@pytest.mark.parametrize("saliency", ["wbp", "gradient", "grad_cam", "lrp.epsilon_plus"])
def test_maps_and_losses_are_float32(policy, saliency, monkeypatch):
    model = compiled(PPIModel(network(policy), saliency=saliency), run_eagerly=True)
    assert model.dtype_policy.name == model.backbone.dtype_policy.name == policy
    seen = []
    original = model._maps
    monkeypatch.setattr(model, "_maps", lambda *arguments: seen.append(original(*arguments)) or seen[-1])
    activations = model.graph.run(tf.cast(IMAGES, model.compute_dtype), True)
    assert activations[model.graph.logits].dtype == model.compute_dtype
    assert model.outputs(activations).dtype == tf.float32
    logs = model.train_on_batch(IMAGES, LABELS, return_dict=True)
    assert {maps.dtype for maps in seen} == {tf.float32}
    assert all(np.isfinite(value) for value in logs.values())
    assert model.predict(IMAGES, verbose=0).dtype == model.compute_dtype


def test_training_in_half_precision_reaches_the_accuracy_of_float32():
    images, labels, _ = images_of_a_colour(300, 1)
    reached = []
    for policy in ("float32", *HALF):
        model = compiled(PPIModel(network(policy)), keras.optimizers.Adam(0.02), metrics=["accuracy"])
        history = model.fit(IMAGES, LABELS, batch_size=32, epochs=10, verbose=0).history
        assert all(np.isfinite(values).all() for values in history.values())
        assert model.optimizer.iterations.numpy() >= 28  # of 30: a step that overflows is skipped
        predicted = model.predict(images, batch_size=300, verbose=0).argmax(axis=1)
        reached.append(np.mean(predicted == labels))
    assert min(reached) > 0.9
    assert min(reached) > reached[0] - 0.03


def test_a_term_whose_gradients_overflow_lowers_the_scale_instead_of_stopping_the_training():
    """With a weight of 30000, gradients leave the range of float16 until the optimizer has lowered its scale."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-6), initial_scale=512.0)
    model = compiled(PPIModel(network("mixed_float16"), contrast_weight=3e4), optimizer, run_eagerly=True)
    model.train_on_batch(IMAGES, LABELS)
    assert model.optimizer.iterations.numpy() == 0
    for _ in range(8):
        model.train_on_batch(IMAGES, LABELS)
    assert model.optimizer.iterations.numpy() > 0
    assert model.optimizer.dynamic_scale < 512.0


def test_pixels_beyond_float16_are_refused_as_such():
    model = compiled(PPIModel(network("mixed_float16")), run_eagerly=True)
    with pytest.raises(ValueError, match="`x`: expected finite values; received 1 values that are NaN or infinite"):
        model.train_on_batch(np.where(np.arange(IMAGES.size).reshape(IMAGES.shape) == 7, 1e5, IMAGES), LABELS)
