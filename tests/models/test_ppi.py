from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcausal.errors import InvalidArgument, TrainingDiverged, UnsupportedOperation
from tfcausal.models import ppi
from tfcausal.models.ppi import PPIModel
from tfcausal.models.targets import Targets
from tfcausal.saliency.propagation import Rule
from tfcausal.saliency.wbp import WBP

L = keras.layers
TERMS = ("contrast_loss", "regularisation_loss", "adversarial_loss")


def compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> keras.Model:
    optimizer = optimizer or keras.optimizers.SGD(1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", **{"run_eagerly": True, **options})
    return model


def step(model: keras.Model, images: np.ndarray, labels: np.ndarray, **options: Any) -> tuple[dict, list[np.ndarray]]:
    """What one step with learning rate 1 reports, and the gradients that it followed."""
    before = [np.copy(weight.numpy()) for weight in model.trainable_weights]
    logs = model.train_on_batch(images, labels, return_dict=True, **options)
    return logs, [start - weight.numpy() for start, weight in zip(before, model.trainable_weights, strict=True)]


def flat(gradients: list) -> np.ndarray:
    return np.concatenate([np.ravel(gradient) for gradient in gradients])


# The objective once more, without the package: double back-propagation through tapes, probabilities instead of logits.

Network = Callable[[tf.Tensor], tf.Tensor]


def probability(logits: tf.Tensor, labels: np.ndarray) -> tf.Tensor:
    powers = tf.exp(logits)
    return tf.gather(powers / tf.reduce_sum(powers, axis=1, keepdims=True), labels, batch_dims=1)


def gradient_times_input(
    network: Callable[[tf.Tensor, tf.GradientTape], tf.Tensor], x: tf.Tensor, labels: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = network(x, tape)
        of_label = tf.reduce_sum(tf.gather(logits, labels, batch_dims=1))
    return logits, tape.gradient(of_label, x) * x


def twin_terms(
    x: tf.Tensor, labels: np.ndarray, logits: tf.Tensor, maps: tf.Tensor, masked: Network, options: dict[str, Any]
) -> dict[str, tf.Tensor]:
    """Every term per sample; `masked` is the network for images without their salient pixels."""
    shown = maps if options.get("second_order", True) else tf.stop_gradient(maps)
    positive = tf.nn.relu(tf.reduce_sum(shown, axis=3))
    saliency = positive / tf.reduce_max(positive, axis=(1, 2), keepdims=True)
    threshold = options.get("threshold", 0.25)
    if options.get("threshold_quantile"):
        pixels = saliency.shape[1] * saliency.shape[2]
        rank = round(pixels * (1 - options["threshold_quantile"]))
        threshold = tf.sort(tf.reshape(saliency, (len(labels), -1)), axis=1)[:, -rank, None, None]
    mask = 1 / (1 + tf.exp(-options.get("sharpness", 50.0) * (saliency - threshold)))
    if options.get("threshold_quantile"):
        mask *= tf.cast(saliency > 0, mask.dtype)
    # The first step takes the mask of the image before.
    others = tf.gather(mask, np.arange(-1, len(labels) - 1) % len(labels))
    without_cause = probability(masked(x * (1 - mask[..., None])), labels)
    negated = options.get("contrast") == "negated"
    return {
        "classification_loss": -tf.math.log(probability(logits, labels)),
        "contrast_loss": tf.math.log(without_cause) if negated else -tf.math.log(1 - without_cause),
        "regularisation_loss": tf.reduce_mean(tf.abs(maps), axis=(1, 2, 3)),
        "adversarial_loss": -tf.math.log(probability(masked(x * (1 - others[..., None])), labels)),
        "mask_coverage": tf.reduce_mean(mask, axis=(1, 2)),
    }


def twin_total(terms: dict[str, tf.Tensor], options: dict[str, Any], weights: np.ndarray | float = 1.0) -> tf.Tensor:
    return tf.reduce_mean(
        weights
        * (
            terms["classification_loss"]
            + options.get("contrast_weight", 1.0) * terms["contrast_loss"]
            + options.get("regularisation_weight", 0.1) * terms["regularisation_loss"]
            + options.get("adversarial_weight", 1.0) * terms["adversarial_loss"]
        )
    )


def twin_step(
    backbone: keras.Model, images: np.ndarray, labels: np.ndarray, options: dict[str, Any], weights: Any = 1.0
) -> tuple[dict[str, float], list[np.ndarray]]:
    network = keras.Model(backbone.input, backbone.get_layer("logits").output)
    x = tf.constant(images, tf.float64)
    with tf.GradientTape() as tape:
        logits, maps = gradient_times_input(lambda x, tape: network(x), x, labels)
        terms = twin_terms(x, labels, logits, maps, network, options)
        loss = twin_total(terms, options, weights)
    gradients = tape.gradient(loss, backbone.trainable_weights)
    return {"loss": float(loss), **{name: float(np.mean(term)) for name, term in terms.items()}}, gradients


CASES = {
    "defaults": {},
    "weights": {"contrast_weight": 2.0, "regularisation_weight": 3.0, "adversarial_weight": 0.5},
    "quantile": {"threshold_quantile": 0.7, "sharpness": 20.0},
    "negated": {"contrast": "negated", "threshold": 0.4},
    "constant map": {"second_order": False, "regularisation_weight": 0.0, "sharpness": 10.0},
    "regularisation alone": {"contrast_weight": 0.0, "adversarial_weight": 0.0, "regularisation_weight": 1.0},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("conv", [{}, {"use_bias": False}], ids=["bias", "no bias"])
def test_step_follows_the_gradients_of_the_objective(classifier, images, labels, options, conv):
    expected, gradients = twin_step(classifier(dtype="float64", **conv), images, labels, options)
    logs, followed = step(compiled(PPIModel(classifier(dtype="float64", **conv), **options)), images, labels)
    without = {f"{name.removesuffix('_weight')}_loss" for name, value in options.items() if value == 0.0}
    assert set(logs) == {*expected} - without
    for name, value in logs.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=1e-6, err_msg=name)
    for gradient, own in zip(gradients, followed, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-4, atol=2e-6)


def test_compiled_step_in_float32_follows_the_same_gradients(classifier, images, labels):
    expected, gradients = twin_step(classifier(dtype="float64"), images, labels, {})
    backbone = classifier()
    backbone.set_weights(classifier(dtype="float64").get_weights())
    logs, followed = step(compiled(PPIModel(backbone), run_eagerly=False), images, labels)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(flat(followed), flat(gradients), rtol=1e-2, atol=1e-4)


def test_stopping_at_the_map_changes_the_gradients_but_not_the_loss(classifier, images, labels):
    options = {"regularisation_weight": 0.0, "sharpness": 10.0}
    results = []
    for second_order in (True, False):
        model = compiled(PPIModel(classifier(), second_order=second_order, **options))
        results.append(step(model, images, labels))
    (logs, followed), (other_logs, other) = results
    np.testing.assert_allclose(logs["loss"], other_logs["loss"], rtol=1e-6)
    difference = np.linalg.norm(flat(followed) - flat(other))
    assert difference > 0.05 * np.linalg.norm(flat(followed))


def test_masked_passes_use_the_statistics_of_the_clean_batch_as_constants(classifier, images, labels):
    options = {"sharpness": 10.0}
    backbone = classifier(batch_norm=True, dtype="float64")
    first, norm, second = (layer for layer in backbone.layers if layer.weights)

    def network(x: tf.Tensor, statistics: tuple[tf.Tensor, tf.Tensor] | None, tape: tf.GradientTape | None = None):
        hidden = tf.nn.relu(tf.nn.conv2d(x, first.kernel, 2, "SAME") + first.bias)
        if tape is not None:  # constants in the map
            statistics = tuple(map(tf.stop_gradient, tf.nn.moments(hidden, (0, 1, 2))))
        mean, variance = statistics
        hidden = norm.gamma * (hidden - mean) / tf.sqrt(variance + norm.epsilon) + norm.beta
        maps = tf.nn.conv2d(hidden, second.kernel, 1, "SAME") + second.bias
        return tf.reduce_mean(maps, axis=(1, 2)), (mean, variance)

    x = tf.constant(images, tf.float64)
    with tf.GradientTape() as outer:
        _, maps = gradient_times_input(lambda x, tape: network(x, None, tape)[0], x, labels)
        hidden = tf.nn.relu(tf.nn.conv2d(x, first.kernel, 2, "SAME") + first.bias)
        statistics = tf.nn.moments(hidden, (0, 1, 2))
        frozen = tuple(tf.stop_gradient(value) for value in statistics)
        logits, _ = network(x, statistics)
        terms = twin_terms(x, labels, logits, maps, lambda x: network(x, frozen)[0], options)
        loss = twin_total(terms, options)
    gradients = outer.gradient(loss, backbone.trainable_weights)

    model = compiled(PPIModel(classifier(batch_norm=True, dtype="float64"), **options))
    logs, followed = step(model, images, labels)
    np.testing.assert_allclose(logs["loss"], float(loss), rtol=2e-6)
    for gradient, own in zip(gradients, followed, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("eager", [True, False])
def test_moving_statistics_are_those_of_a_plain_step(classifier, images, labels, eager):
    plain = compiled(classifier(batch_norm=True), run_eagerly=eager)
    model = compiled(PPIModel(classifier(batch_norm=True)), run_eagerly=eager)
    fresh = [np.copy(value) for value in model.backbone.get_layer("norm").get_weights()[2:]]
    for one in (plain, model):
        one.train_on_batch(images, labels)
    for start, own, expected in zip(
        fresh,
        model.backbone.get_layer("norm").get_weights()[2:],
        plain.get_layer("norm").get_weights()[2:],
        strict=True,
    ):
        np.testing.assert_allclose(own, expected, rtol=1e-6)
        assert np.abs(own - start).max() > 1e-3


def test_frozen_batch_norm_keeps_its_moving_statistics(classifier, images, labels):
    backbone = classifier(batch_norm=True)
    norm = backbone.get_layer("norm")
    norm.trainable = False
    norm.moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    before = norm.get_weights()
    logs, _ = step(compiled(PPIModel(backbone)), images, labels)
    for start, own in zip(before, norm.get_weights(), strict=True):
        np.testing.assert_array_equal(own, start)
    assert logs["contrast_loss"] > 0


def test_map_belongs_to_the_forward_pass_with_its_dropout(classifier, images, labels, monkeypatch):
    seen = []

    def spy(activations, evidence, training):
        maps = original(activations, evidence, training)
        seen.append((activations[model.graph.logits].numpy(), maps.numpy()))
        return maps

    model = compiled(PPIModel(classifier(dropout=0.5, use_bias=False)))
    original = model._maps
    monkeypatch.setattr(model, "_maps", spy)
    step(model, images, labels)
    logits, maps = seen[0]
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), logits[np.arange(6), labels], rtol=1e-4)
    assert np.abs(logits - model.graph.run(images)[model.graph.logits]).max() > 1e-2


ARGUMENTS = [
    ("contrast", "negated", {}),
    ("contrast_weight", 2.0, {}),
    ("regularisation_weight", 20.0, {}),
    ("adversarial_weight", 2.0, {}),
    ("threshold", 0.6, {}),
    ("threshold_quantile", 0.8, {}),
    ("threshold_quantile", 0.6, {"threshold_quantile": 0.8}),
    ("sharpness", 5.0, {}),
    ("second_order", False, {"regularisation_weight": 0.0}),
    ("warm_up_epochs", 1, {}),
]


@pytest.mark.parametrize(("name", "value", "base"), ARGUMENTS)
def test_every_argument_changes_the_training(classifier, images, labels, name, value, base):
    _, followed = step(compiled(PPIModel(classifier(), **base)), images, labels)
    _, again = step(compiled(PPIModel(classifier(), **base)), images, labels)
    _, other = step(compiled(PPIModel(classifier(), **{**base, name: value})), images, labels)
    np.testing.assert_array_equal(flat(again), flat(followed))
    assert np.linalg.norm(flat(other) - flat(followed)) > 1e-2 * np.linalg.norm(flat(followed))


def test_weights_of_zero_leave_a_plain_step(classifier, images, labels):
    off = dict.fromkeys(("contrast_weight", "regularisation_weight", "adversarial_weight"), 0.0)
    plain, model = compiled(classifier()), compiled(PPIModel(classifier(), **off))
    for one in (plain, model):
        one.train_on_batch(images, labels)
    for own, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)


def test_terms_join_after_the_warm_up(classifier, images, labels):
    traces = []

    class Counted(PPIModel):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Any:
            traces.append(self._with_terms)
            return super().objective(images, targets, training)

    plain = compiled(classifier(), run_eagerly=False)
    model = compiled(Counted(classifier(), warm_up_epochs=2), run_eagerly=False)
    own_callback = keras.callbacks.LambdaCallback()
    callbacks = [own_callback]
    quiet = {"shuffle": False, "batch_size": 3}
    plain.fit(images, labels, epochs=2, verbose=0, **quiet)
    history = model.fit(images, labels, epochs=2, verbose=0, callbacks=callbacks, **quiet).history
    for own, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    assert history["loss"] == history["classification_loss"]
    assert history["contrast_loss"] == [0.0, 0.0]

    history = model.fit(images, labels, epochs=5, initial_epoch=1, verbose=0, callbacks=own_callback, **quiet).history
    total = np.array(history["classification_loss"]) + np.array(history["contrast_loss"])
    total += 0.1 * np.array(history["regularisation_loss"]) + np.array(history["adversarial_loss"])
    np.testing.assert_allclose(history["loss"], total, rtol=1e-5)
    assert [loss > 0 for loss in history["adversarial_loss"]] == [False, True, True, True]
    assert callbacks == [own_callback]
    assert traces == [True]  # the warm-up does without


def test_warm_up_in_every_way_to_pass_callbacks(classifier, images, labels):
    model = compiled(PPIModel(classifier(), warm_up_epochs=1))
    model.optimizer.learning_rate = 0.0
    epochs = []
    own = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epochs.append((epoch, logs["contrast_loss"] > 0))
    )
    model.fit(images, labels, 6, 2, 0, [own])
    model.fit(images, labels, epochs=2, verbose=0, callbacks=(own,))
    joined = keras.callbacks.CallbackList([own], model=model)
    model.fit(images, labels, epochs=2, verbose=0, callbacks=joined)
    assert epochs == [(0, False), (1, True)] * 3


@pytest.mark.parametrize("eager", [True, False])
def test_negated_contrast_that_runs_away_is_stopped(classifier, images, labels, eager):
    model = PPIModel(classifier(), contrast="negated", contrast_weight=20.0, divergence_limit=30.0)
    compiled(model, keras.optimizers.SGD(0.05), run_eagerly=eager)
    before = model.get_weights()
    expected = (
        r"^Training was stopped: the negated contrast diverges; the cross-entropy of the masked images is [\d.]+ nats, "
        r"above divergence_limit=30.0. Use contrast='one_vs_rest', which is bounded, or lower contrast_weight.$"
    )
    with pytest.raises(TrainingDiverged, match=expected):
        model.fit(images, labels, epochs=200, verbose=0)
    assert 0 < model.optimizer.iterations.numpy() < 200
    assert all(np.isfinite(value).all() for value in model.get_weights())
    assert np.abs(model.get_weights()[0] - before[0]).max() > 0
    after = model.get_weights()
    with pytest.raises(TrainingDiverged, match=expected):
        model.fit(images, labels, verbose=0)
    for own, value in zip(model.get_weights(), after, strict=True):
        np.testing.assert_array_equal(own, value)


def test_limit_is_the_mean_cross_entropy_of_the_masked_images(classifier, images, labels):
    def model(limit: float) -> keras.Model:
        return compiled(PPIModel(classifier(), contrast="negated", divergence_limit=limit))

    value = -step(model(100.0), images, labels)[0]["contrast_loss"]
    model(value * 1.001).train_on_batch(images, labels)
    with pytest.raises(TrainingDiverged, match=f"masked images is {str(value)[:5]}"):
        model(value * 0.999).train_on_batch(images, labels)


def test_bounded_contrast_has_no_limit(classifier, images, labels):
    model = PPIModel(classifier(), contrast_weight=20.0, divergence_limit=1e-6)
    compiled(model, keras.optimizers.SGD(0.05)).fit(images, labels, epochs=5, verbose=0)
    assert model.optimizer.iterations.numpy() == 5


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_no_image_gets_its_own_mask_and_every_mask_is_used(classifier, images, labels, size, monkeypatch):
    seen = []

    def spy(images, mask, masked_value):
        seen.append(mask.numpy())
        return original(images, mask, masked_value)

    original = ppi.remove
    monkeypatch.setattr(ppi, "remove", spy)
    model = compiled(PPIModel(classifier()), keras.optimizers.SGD(0.0))
    orders = set()
    for _ in range(6):
        model.train_on_batch(images[:size], labels[:size])
        others, own = seen.pop(), seen.pop()
        # Which image every mask of the second half is from; all masks differ.
        distance = np.abs(others[:, None] - own[None]).reshape(size, size, -1).max(axis=2)
        assert (distance == 0).sum() == size
        order = tuple(distance.argmin(axis=1))
        assert all(position != image for image, position in enumerate(order))
        assert sorted(order) == list(range(size))
        orders.add(order)
    assert len(orders) == size - 1


@pytest.mark.parametrize("eager", [True, False])
def test_a_first_batch_of_one_is_refused_where_another_image_is_needed(classifier, images, labels, eager):
    model = compiled(PPIModel(classifier()), run_eagerly=eager)
    expected = "`batch_size`: expected at least 2; received 1. PPI masks an image with the map of another one; set adv"
    with pytest.raises(InvalidArgument, match=expected):
        model.fit(images, labels, batch_size=1, verbose=0)
    assert model.optimizer.iterations.numpy() == 0
    compiled(PPIModel(classifier(), adversarial_weight=0.0), run_eagerly=eager).train_on_batch(images[:1], labels[:1])
    model = compiled(PPIModel(classifier(batch_norm=True), adversarial_weight=0.0), run_eagerly=eager)
    with pytest.raises(InvalidArgument, match="Batch normalisation needs the statistics of several images"):
        model.train_on_batch(images[:1], labels[:1])


def test_rest_of_one_has_no_adversarial_term(classifier, images, labels):
    def step_of_the_rest(weight: float) -> np.ndarray:
        """What the step on the fifth image changes; those before it have a learning rate of 0."""
        model = compiled(PPIModel(classifier(), adversarial_weight=weight), keras.optimizers.SGD(0.0))
        weights = []
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: setattr(model.optimizer, "learning_rate", float(batch == 2)),
            on_train_batch_end=lambda batch, logs: weights.append(flat(model.get_weights())),
        )
        model.fit(images[:5], labels[:5], batch_size=2, shuffle=False, verbose=0, callbacks=[callback])
        return weights[2] - weights[1]

    assert np.abs(step_of_the_rest(1.0)).max() > 0
    np.testing.assert_allclose(step_of_the_rest(1.0), step_of_the_rest(0.0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("eager", [True, False])
def test_batches_of_one_are_refused_in_a_later_fit_too(classifier, images, labels, eager):
    model = compiled(PPIModel(classifier()), run_eagerly=eager)
    model.fit(images, labels, batch_size=3, verbose=0)
    for again in (
        lambda: model.fit(images, labels, batch_size=1, verbose=0),
        lambda: step(model, images[:1], labels[:1]),
    ):
        with pytest.raises(
            InvalidArgument, match=r"`batch_size`: expected at least 2; received 1\. PPI masks an image"
        ):
            again()


def test_an_epoch_whose_rest_is_one_image(classifier, images, labels):
    model = compiled(PPIModel(classifier(batch_norm=True)), keras.optimizers.SGD(0.1), run_eagerly=False)
    history = model.fit(images[:5], labels[:5], batch_size=4, epochs=2, shuffle=False, verbose=0).history
    assert model.optimizer.iterations.numpy() == 4
    assert all(np.isfinite(values).all() for values in history.values())


def test_masks_are_refused(classifier, images, labels):
    model = compiled(PPIModel(classifier()))
    y = {"label": labels, "mask": np.ones((6, 8, 8, 1)), "has_mask": np.ones(6)}
    expected = "`y`: expected labels alone: PPIModel uses no masks; received a dict with `mask`. Pass the labels alone."
    for method in (model.fit, model.evaluate):
        with pytest.raises(InvalidArgument, match=expected):
            method(images, y, verbose=0)
    model.fit(images, {"label": labels}, verbose=0)


def test_sample_weights_weigh_every_term(classifier, images, labels):
    weights = np.array([0.0, 2.0, 1.0, 0.5, 3.0, 0.0])
    expected, gradients = twin_step(classifier(dtype="float64"), images, labels, {}, weights)
    logs, followed = step(compiled(PPIModel(classifier(dtype="float64"))), images, labels, sample_weight=weights)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(flat(followed), flat(gradients), rtol=1e-4, atol=2e-6)
    parts = logs["classification_loss"] + logs["contrast_loss"] + logs["adversarial_loss"]
    np.testing.assert_allclose(logs["loss"], parts + 0.1 * logs["regularisation_loss"], rtol=1e-6)


def test_reports_are_means_over_the_images_whatever_the_batches(classifier, images, labels):
    model = compiled(PPIModel(classifier()), keras.optimizers.SGD(0.0))
    history = model.fit(images, labels, batch_size=4, shuffle=False, verbose=0).history
    maps = WBP(model)(images, labels)
    np.testing.assert_allclose(history["regularisation_loss"], [np.abs(maps).mean()], rtol=1e-5)
    np.testing.assert_allclose(history["mask_coverage"], [np.mean(model.mask(tf.constant(maps)))], rtol=1e-5)


def test_one_hot_labels_give_the_same_step(classifier, images, labels):
    model = compiled(PPIModel(classifier()))
    other = PPIModel(classifier())
    other.compile(keras.optimizers.SGD(1.0), "categorical_crossentropy", run_eagerly=True)
    _, followed = step(model, images, labels)
    _, same = step(other, images, np.eye(3)[labels])
    np.testing.assert_allclose(flat(same), flat(followed), rtol=1e-4, atol=1e-6)


def test_bad_values_leave_the_weights_alone(classifier, images, labels):
    model = compiled(PPIModel(classifier(batch_norm=True)), run_eagerly=False)
    before = model.get_weights()
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(InvalidArgument, match="`x`: expected finite values; received 1 values"):
        model.fit(images, labels, verbose=0)
    with pytest.raises(InvalidArgument, match="received the label 3"):
        model.fit(np.nan_to_num(images), labels + 1, verbose=0)
    for own, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(own, value)


def test_fit_evaluate_and_predict_like_any_model(classifier, images, labels, tmp_path):
    model = compiled(PPIModel(classifier(batch_norm=True)), "adam", metrics=["accuracy"], run_eagerly=False)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    callbacks = [keras.callbacks.CSVLogger(tmp_path / "history.csv")]
    history = model.fit(data, validation_data=data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks).history
    assert set(history) == {
        *("loss", "classification_loss", "accuracy", *TERMS, "mask_coverage"),
        *("val_loss", "val_classification_loss", "val_accuracy"),
    }
    assert all(len(values) == 2 and np.isfinite(values).all() for values in history.values())
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header.split(",") == ["epoch", *sorted(history)]
    results = model.evaluate(images, labels, verbose=0, return_dict=True)
    predictions = model.predict(images, verbose=0)
    np.testing.assert_allclose(predictions, model.backbone(images), rtol=1e-5)
    likelihood = -np.log(predictions[np.arange(6), labels]).mean()
    assert results["accuracy"] == np.float32((predictions.argmax(axis=1) == labels).mean())
    np.testing.assert_allclose([results["loss"], results["classification_loss"]], likelihood, rtol=1e-5)


def test_saved_model_has_every_argument_and_goes_on_where_it_stopped(classifier, images, labels, tmp_path):
    options = {
        "contrast": "negated",
        "contrast_weight": 0.5,
        "regularisation_weight": 0.2,
        "adversarial_weight": 0.7,
        "threshold_quantile": 0.8,
        "sharpness": 30.0,
        "second_order": True,
        "warm_up_epochs": 1,
        "divergence_limit": 12.0,
        "name": "mine",
    }
    quiet = {"batch_size": 4, "shuffle": False, "verbose": 0}
    unbroken = compiled(PPIModel(classifier(batch_norm=True), **options), "adam")
    expected = unbroken.fit(images, labels, epochs=4, **quiet).history

    model = compiled(PPIModel(classifier(batch_norm=True), **options), "adam")
    model.fit(images, labels, epochs=2, **quiet)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded) is PPIModel
    assert {name: getattr(loaded, name) for name in options} == options
    assert loaded.threshold is None
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))
    assert loaded.optimizer.iterations.numpy() == 4
    loaded.run_eagerly = True
    history = loaded.fit(images, labels, epochs=4, initial_epoch=2, **quiet).history
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values[2:], rtol=1e-6, err_msg=name)
    for own, value in zip(loaded.get_weights(), unbroken.get_weights(), strict=True):
        np.testing.assert_allclose(own, value, rtol=1e-5, atol=1e-7)


def test_saved_default_threshold_and_stopped_map(classifier, tmp_path):
    model = PPIModel(classifier(), threshold=0.4, second_order=False, regularisation_weight=0.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.threshold, loaded.threshold_quantile, loaded.second_order) == (0.4, None, False)


def test_further_batches_of_the_same_shape_are_not_traced_again(classifier, images, labels):
    traces = []

    class Counted(PPIModel):
        def objective(self, images: tf.Tensor, targets: Targets, training: bool) -> Any:
            traces.append(training)
            return super().objective(images, targets, training)

    model = compiled(Counted(classifier()), run_eagerly=False)
    model.fit(images, labels, batch_size=2, epochs=2, verbose=0)
    model.fit(images, labels, batch_size=2, verbose=0)
    assert traces == [True]


def test_sequential_and_nested_backbones_take_the_same_step(classifier, images, labels):
    def sequential() -> keras.Model:
        return keras.Sequential([keras.Input((8, 8, 3)), *classifier().layers[1:]])

    def nested() -> keras.Model:
        inputs = keras.Input((8, 8, 3))
        model = classifier()
        trunk = keras.Model(model.input, model.get_layer("class_maps").output)
        pooled = L.GlobalAveragePooling2D()(trunk(inputs))
        return keras.Model(inputs, L.Softmax()(pooled))

    expected_logs, expected = step(compiled(PPIModel(classifier())), images, labels)
    for build in (sequential, nested):
        logs, followed = step(compiled(PPIModel(build())), images, labels)
        np.testing.assert_allclose(logs["loss"], expected_logs["loss"], rtol=1e-6)
        np.testing.assert_allclose(flat(followed), flat(expected), rtol=1e-4, atol=1e-6)


def test_pooling_skips_and_padding_train_through_the_second_order(images, labels):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same")(L.ZeroPadding2D(1)(inputs))
    x = trunk = L.ReLU()(x)
    x = L.Add()([L.Conv2D(4, 3, padding="same", activation="relu")(x), trunk])
    x = L.Concatenate()([L.MaxPooling2D()(x), L.AveragePooling2D(2)(x)])
    backbone = keras.Model(inputs, L.Dense(3, activation="softmax")(L.Flatten()(x)))
    before = backbone.get_weights()
    # In this mode only the map's L1 norm trains: the weights move because the map depends on them.
    off = {"contrast_weight": 0.0, "adversarial_weight": 0.0, "regularisation_weight": 100.0}
    model = compiled(PPIModel(backbone, **off), keras.optimizers.SGD(0.05))
    norms = model.fit(images, labels, epochs=3, verbose=0).history["regularisation_loss"]
    assert (np.diff(norms) < 0).all()
    moved = [np.abs(own - start).max() for own, start in zip(backbone.get_weights(), before, strict=True)]
    assert min(change for change, start in zip(moved, before, strict=True) if start.ndim > 1) > 1e-4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"contrast": "cosine"}, "`contrast`: expected one of one_vs_rest, negated, probability; received 'cosine'"),
        ({"contrast_weight": -1.0}, "`contrast_weight`: expected a finite number of at least 0; received -1.0"),
        ({"regularisation_weight": float("nan")}, "`regularisation_weight`: .* at least 0; received nan"),
        ({"adversarial_weight": float("inf")}, "`adversarial_weight`: .* at least 0; received inf"),
        ({"contrast_weight": "1"}, "`contrast_weight`: .* at least 0; received '1'"),
        ({"warm_up_epochs": -1}, "`warm_up_epochs`: expected an integer of at least 0; received -1"),
        ({"warm_up_epochs": 1.5}, "`warm_up_epochs`: expected an integer of at least 0; received 1.5"),
        ({"threshold": 1.0}, "`threshold`: expected a number between 0 and 1; received 1.0"),
        ({"threshold_quantile": 0.0}, "`threshold_quantile`: expected a number between 0 and 1; received 0.0"),
        (
            {"threshold": 0.3, "threshold_quantile": 0.9},
            "`threshold`: expected None where `threshold_quantile` is given",
        ),
        ({"sharpness": 0.0}, "`sharpness`: expected a finite positive number; received 0.0"),
        ({"divergence_limit": 0.0}, "`divergence_limit`: expected a positive number; received 0.0"),
        (
            {"second_order": False},
            "`regularisation_weight`: expected 0 with second_order=False; received 0.1. With the",
        ),
    ],
)
def test_arguments_outside_their_range(classifier, options, expected):
    with pytest.raises(InvalidArgument, match=f"Invalid value for {expected}"):
        PPIModel(classifier(), **options)


def test_backbone_with_a_layer_that_has_no_rule():
    inputs = keras.Input((8, 8, 3))
    x = L.Softmax(name="strange")(L.Conv2D(3, 3)(inputs))
    with pytest.raises(UnsupportedOperation, match=r"wbp: `strange` \(Softmax\) has no rule"):
        PPIModel(keras.Model(inputs, L.GlobalAveragePooling2D()(x)))


def test_backbone_that_draws_at_random_what_the_map_cannot_know():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(3, 3)(L.RandomRotation(0.1, name="turn")(inputs))
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(x))
    with pytest.raises(UnsupportedOperation, match=r"`turn` \(RandomRotation\) draws at random in training.*pipeline"):
        PPIModel(model)
    assert WBP(model)(np.ones((1, 8, 8, 3))).shape == (1, 8, 8, 3)


def test_mask_is_half_at_the_threshold_and_never_where_nothing_is_salient(classifier):
    maps = tf.constant([[[[4.0], [1.0]], [[0.0], [-3.0]]], [[[0.0], [0.0]], [[-1.0], [0.0]]]])
    fixed = PPIModel(classifier(), sharpness=1e4).mask(maps).numpy()[..., 0]
    np.testing.assert_allclose(fixed, [[[1, 0.5], [0, 0]], [[0, 0], [0, 0]]], atol=1e-6)
    quantile = PPIModel(classifier(), threshold_quantile=0.75, sharpness=1e4).mask(maps).numpy()[..., 0]
    np.testing.assert_allclose(quantile, [[[0.5, 0], [0, 0]], [[0, 0], [0, 0]]], atol=1e-6)
    # Half of the pixels are to go, and only these two are salient; the third largest value is 0.
    quantile = PPIModel(classifier(), threshold_quantile=0.25, sharpness=50.0).mask(maps).numpy()[..., 0]
    np.testing.assert_allclose(quantile, [[[1, 1], [0, 0]], [[0, 0], [0, 0]]], atol=1e-5)


def test_explainers_look_at_the_backbone(classifier, images, labels):
    model = compiled(PPIModel(classifier(batch_norm=True)))
    model.train_on_batch(images, labels)
    maps = WBP(model)(images, labels)
    np.testing.assert_array_equal(maps, WBP(model.backbone)(images, labels))
    assert np.abs(maps).max() > 0


def test_training_makes_the_masked_images_less_recognisable(classifier, images, labels):
    options = {"contrast_weight": 2.0, "adversarial_weight": 0.0, "regularisation_weight": 0.0, "sharpness": 10.0}
    model = compiled(PPIModel(classifier(), **options), keras.optimizers.SGD(0.2))
    history = model.fit(images, labels, epochs=12, verbose=0).history
    assert history["contrast_loss"][-1] < 0.5 * history["contrast_loss"][0]


def test_a_users_rule_counts_in_training_too(monkeypatch):
    class Tripled(L.Layer):
        def call(self, inputs):
            return 3.0 * inputs

    table = dict(ppi.RULES._rules)
    monkeypatch.setattr(ppi.RULES, "_rules", table)
    ppi.RULES.register(Tripled, Rule(lambda step, cotangent: (3.0 * cotangent,)))
    inputs = keras.Input((8, 8, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3)(Tripled(name="own")(inputs)))
    assert PPIModel(keras.Model(inputs, x)).graph.operations[0].path == "own"


def test_channels_first_is_refused():
    inputs = keras.Input((3, 8, 8))
    x = L.Flatten()(L.ZeroPadding2D(1, data_format="channels_first", name="pad")(inputs))
    with pytest.raises(InvalidArgument, match="layers with the channels last; received channels first in `pad`"):
        PPIModel(keras.Model(inputs, L.Dense(2)(x)))


def test_a_backbone_whose_statistics_a_call_has_fixed_keeps_them(images, labels):
    class Transfer(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = L.BatchNormalization(name="norm"), L.Conv2D(3, 3)
            self.pool = L.GlobalAveragePooling2D()

        def call(self, inputs, training=None):
            return self.pool(self.conv(self.norm(inputs, training=False)))

    backbone = Transfer()
    backbone(images)
    model = PPIModel(backbone)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    model.train_on_batch(images + 3.0, labels)
    np.testing.assert_array_equal(backbone.norm.moving_mean, np.zeros(3))
