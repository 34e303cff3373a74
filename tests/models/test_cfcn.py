from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.models.cfcn import CFCNModel
from tfcausal.saliency.wbp import WBP

L = keras.layers


@pytest.fixture
def targets(labels) -> dict[str, np.ndarray]:
    """Masks for four of the six images; the others have the dummy mask of ones."""
    mask = (np.random.default_rng(1).uniform(size=(6, 8, 8, 1)) > 0.7).astype("float32")
    has_mask = np.array([1, 1, 0, 1, 0, 1], "float32")
    return {"label": labels, "mask": np.where(has_mask[:, None, None, None] > 0, mask, 1), "has_mask": has_mask}


def compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> keras.Model:
    optimizer = optimizer or keras.optimizers.SGD(1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", **{"run_eagerly": True, **options})
    return model


def twin_terms(backbone: keras.Model, images: np.ndarray, targets: dict[str, np.ndarray], training: bool):
    """Cross-entropy and causal focus per image, without the package; masks 8x8, maps 4x4."""
    network = keras.Model(backbone.input, [backbone.get_layer("class_maps").output, backbone.output])
    maps, probabilities = network(tf.constant(images, tf.float64), training=training)
    cells = targets["mask"][..., 0].reshape(6, 4, 2, 4, 2).mean(axis=(2, 4))
    activation = tf.nn.relu(tf.gather(tf.transpose(maps, (0, 3, 1, 2)), targets["label"], batch_dims=1))
    share = tf.reduce_sum(cells * activation, (1, 2)) / (tf.reduce_sum(activation, (1, 2)) + 1e-7)
    entropy = -tf.math.log(tf.gather(probabilities, targets["label"], batch_dims=1))
    return entropy, targets["has_mask"] * (1 - share)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("weights", [1.0, np.array([0.0, 2.0, 1.0, 0.5, 3.0, 0.0])], ids=["alike", "weighted"])
def test_step_follows_the_gradients_of_the_objective(classifier, images, targets, alpha, batch_norm, weights):
    backbone = classifier(batch_norm=batch_norm, dtype="float64")
    with tf.GradientTape() as tape:
        entropy, focus = twin_terms(backbone, images, targets, training=True)
        loss = tf.reduce_mean(weights * (entropy + alpha * focus))
    gradients = tape.gradient(loss, backbone.trainable_weights)

    model = compiled(CFCNModel(classifier(batch_norm=batch_norm, dtype="float64"), alpha=alpha))
    before = [np.copy(weight.numpy()) for weight in model.trainable_weights]
    sample_weight = None if np.isscalar(weights) else weights
    logs = model.train_on_batch(images, targets, sample_weight=sample_weight, return_dict=True)
    np.testing.assert_allclose(logs["loss"], loss, rtol=2e-6)
    np.testing.assert_allclose(logs["classification_loss"], np.mean(weights * entropy), rtol=2e-6)
    np.testing.assert_allclose(logs["causal_focus_loss"], np.mean(weights * focus), rtol=2e-6)
    for start, weight, gradient in zip(before, model.trainable_weights, gradients, strict=True):
        np.testing.assert_allclose(start - weight.numpy(), gradient, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("eager", [True, False])
def test_alpha_zero_is_a_plain_step(classifier, images, labels, targets, eager):
    plain = compiled(classifier(batch_norm=True), run_eagerly=eager)
    model = compiled(CFCNModel(classifier(batch_norm=True), alpha=0.0), run_eagerly=eager)
    before = model.get_weights()
    plain.train_on_batch(images, labels)
    logs = model.train_on_batch(images, targets, return_dict=True)
    assert set(logs) == {"loss", "classification_loss"}
    for own, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(own, expected)
    assert np.abs(model.get_weights()[0] - before[0]).max() > 0
    assert set(model.evaluate(images, targets, verbose=0, return_dict=True)) == {"loss", "classification_loss"}


def test_images_without_a_mask_only_have_the_classification_loss(classifier, images, labels, targets):
    plain, model = compiled(classifier()), compiled(CFCNModel(classifier(), alpha=3.0))
    targets["has_mask"] = np.zeros(6)
    plain.train_on_batch(images, labels)
    logs = model.train_on_batch(images, targets, return_dict=True)
    assert logs["causal_focus_loss"] == 0
    for own, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(own, expected)


def test_masks_without_flags_are_all_real(classifier, images, labels, targets):
    del targets["has_mask"]
    model = compiled(CFCNModel(classifier()))
    results = model.evaluate(images, targets, verbose=0, return_dict=True)
    expected = model.evaluate(images, {**targets, "has_mask": np.ones(6)}, verbose=0, return_dict=True)
    assert results == expected


@pytest.mark.parametrize("eager", [True, False])
def test_training_without_masks_is_an_error_and_evaluation_is_not(classifier, images, labels, eager):
    model = compiled(CFCNModel(classifier()), run_eagerly=eager)
    before = model.get_weights()
    expected = (
        r"Invalid value for `y`: expected a dict of `label`, `mask` and `has_mask` \(0 for an image without a mask\): "
        r"CFCNModel learns from masks; received labels alone. Without masks, train a plain Keras model."
    )
    for y in (labels, {"label": labels}):
        with pytest.raises(InvalidArgument, match=expected):
            model.fit(images, y, verbose=0)
    for own, start in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(own, start)
    results = model.evaluate(images, labels, verbose=0, return_dict=True)
    likelihood = -np.log(model.predict(images, verbose=0)[np.arange(6), labels]).mean()
    assert set(results) == {"loss", "classification_loss"}
    np.testing.assert_allclose(results["loss"], likelihood, rtol=1e-5)


def test_evaluation_with_masks_reports_the_causal_focus(classifier, images, targets):
    model = compiled(CFCNModel(classifier(batch_norm=True, dtype="float64"), alpha=2.0), metrics=["accuracy"])
    entropy, focus = twin_terms(model.backbone, images, targets, training=False)
    results = model.evaluate(images, targets, batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(results["causal_focus_loss"], np.mean(focus), rtol=1e-5)
    np.testing.assert_allclose(results["loss"], np.mean(entropy + 2 * focus), rtol=1e-5)
    assert 0 <= results["accuracy"] <= 1


def test_fit_with_data_sets_validation_and_callbacks(classifier, images, labels, targets):
    model = compiled(CFCNModel(classifier(batch_norm=True)), "adam", metrics=["accuracy"], run_eagerly=False)
    data = tf.data.Dataset.from_tensor_slices((images, targets)).batch(4)
    plain = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    epochs = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    options = {"shuffle": False, "verbose": 0, "callbacks": [callback]}
    history = model.fit(data, validation_data=data, epochs=2, **options).history
    names = {"loss", "classification_loss", "causal_focus_loss", "dead_maps", "accuracy"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert epochs == [0, 1]
    history = model.fit(data, validation_data=plain, **options).history
    assert set(history) - names == {"val_loss", "val_classification_loss", "val_accuracy"}


def test_bad_masks_are_named(classifier, images, targets):
    model = compiled(CFCNModel(classifier()), run_eagerly=False)
    before = model.get_weights()
    with pytest.raises(InvalidArgument, match=r"`y\['mask'\]`: expected values in \[0, 1\]"):
        model.fit(images, {**targets, "mask": 255 * targets["mask"]}, verbose=0)
    for own, start in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(own, start)


def test_saved_model_goes_on_where_it_stopped(classifier, images, targets, tmp_path):
    quiet = {"batch_size": 4, "shuffle": False, "verbose": 0}
    unbroken = compiled(CFCNModel(classifier(batch_norm=True), alpha=2.5), "adam")
    expected = unbroken.fit(images, targets, epochs=3, **quiet).history
    model = compiled(CFCNModel(classifier(batch_norm=True), alpha=2.5, name="mine"), "adam")
    model.fit(images, targets, epochs=2, **quiet)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert (type(loaded), loaded.alpha, loaded.name) == (CFCNModel, 2.5, "mine")
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))
    loaded.run_eagerly = True
    history = loaded.fit(images, targets, epochs=3, initial_epoch=2, **quiet).history
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values[2:], rtol=1e-6, err_msg=name)


def inside_share(model: keras.Model, images: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> float:
    """Mean share of the positive part of the true class's map that lies inside the mask."""
    maps = model.graph.run(images)[model.maps].numpy()
    activation = np.maximum(maps[np.arange(len(labels)), :, :, labels], 0)
    return float(((activation * mask[..., 0]).sum(axis=(1, 2)) / activation.sum(axis=(1, 2))).mean())


def test_the_objective_draws_the_evidence_into_the_mask():
    """The class shows in the left half, and, more strongly, in the right half, where no cause is."""
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 2
    images = rng.normal(0.0, 0.3, (32, 8, 8, 4)).astype("float32")
    for image, label in enumerate(labels):
        images[image, :, :4, label] += 1.0
        images[image, :, 4:, 2 + label] += 2.0
    mask = np.zeros((32, 8, 8, 1), "float32")
    mask[:, :, :4] = 1
    shares = {}
    for alpha in (0.0, 2.0):
        keras.utils.set_random_seed(0)
        backbone = keras.Sequential(
            [
                keras.Input((8, 8, 4)),
                L.Conv2D(4, 3, padding="same", activation="relu"),
                L.Conv2D(2, 1),
                L.GlobalAveragePooling2D(),
                L.Softmax(),
            ]
        )
        model = compiled(CFCNModel(backbone, alpha=alpha), keras.optimizers.Adam(0.03), run_eagerly=False)
        history = model.fit(images, {"label": labels, "mask": mask}, epochs=30, batch_size=32, verbose=0).history
        assert history["classification_loss"][-1] < 0.5
        shares[alpha] = inside_share(model, images, labels, mask)
        if alpha:
            results = model.evaluate(images, {"label": labels, "mask": mask}, verbose=0, return_dict=True)
            np.testing.assert_allclose(results["causal_focus_loss"], 1 - shares[alpha], rtol=1e-4)
    assert shares[0.0] < 0.5
    assert shares[2.0] > shares[0.0] + 0.25


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf"), "1", None])
def test_alpha_outside_its_range(classifier, alpha):
    with pytest.raises(InvalidArgument, match="`alpha`: expected a finite number of at least 0; received"):
        CFCNModel(classifier(), alpha=alpha)


@pytest.mark.parametrize(
    ("layers", "received"),
    [
        ([L.Flatten(name="flat"), L.Dense(3, name="dense")], "`dense` before the head"),
        ([L.GlobalMaxPooling2D(name="maximum")], "`maximum` before the head"),
        ([L.GlobalAveragePooling2D(), L.Dense(3, activation="softmax", name="dense")], "`dense` before the head"),
    ],
)
def test_backbone_without_class_maps(layers, received):
    expected = (
        f"`backbone`: expected a classifier whose logits are the global average of one map per class, .*{received}"
    )
    with pytest.raises(InvalidArgument, match=expected):
        CFCNModel(keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(3, 3), *layers]))


def test_backbone_without_a_graph():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(UnsupportedOperation, match="call the model once, so that the shape of its input is known"):
        CFCNModel(Subclassed())


def test_explainers_look_at_the_backbone(classifier, images, targets):
    model = compiled(CFCNModel(classifier(batch_norm=True)))
    model.train_on_batch(images, targets)
    maps = WBP(model)(images, targets["label"])
    np.testing.assert_array_equal(maps, WBP(model.backbone)(images, targets["label"]))
    assert np.abs(maps).max() > 0
