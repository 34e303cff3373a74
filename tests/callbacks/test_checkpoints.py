import keras
import numpy as np
import pytest

from tfcausal.callbacks import EpochCheckpoint, restore_checkpoint
from tfcausal.errors import InvalidArgument, RunError

L = keras.layers


def network(*layers, optimizer="adam", size=8):
    model = keras.Sequential([keras.Input((size, size, 3)), *layers])
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def layers(filters=4, kernel=3, activation="softmax"):
    return [L.Conv2D(filters, kernel), L.ReLU(), L.GlobalAveragePooling2D(), L.Dense(3, activation=activation)]


@pytest.fixture
def checkpoint(tmp_path, images, labels):
    """A checkpoint of the layers above after one epoch with Adam."""
    path = tmp_path / "checkpoint.weights.h5"
    callback = EpochCheckpoint(lambda epoch: path, 0, lambda epoch, logs: None)
    network(*layers()).fit(images, labels, verbose=0, callbacks=[callback])
    return path


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            lambda: network(*layers(filters=5)),
            r"the shape \(3, 3, 3, 4\) for `kernel` of layer 1, `conv2d.*`, where the model has \(3, 3, 3, 5\)",
        ),
        (
            lambda: network(L.Conv2D(4, 3), L.Dropout(0.5), *layers()[2:]),
            r"received a ReLU \(`re_lu.*`\) as layer 2 where the model has a Dropout \(`dropout.*`\)",
        ),
        (lambda: network(*layers()[:3]), "received 4 layers where the model has 3"),
        (lambda: network(*layers(), L.ReLU()), "received 4 layers where the model has 5"),
        (
            lambda: network(L.Conv2D(4, 3, use_bias=False), *layers()[1:]),
            "received 2 weights in layer 1, `conv2d.*` where the model has 1",
        ),
        (
            lambda: network(*layers(), optimizer="sgd"),
            "received the state of the optimizer Adam where the model has SGD",
        ),
    ],
)
def test_the_first_difference_is_named_and_nothing_is_loaded(checkpoint, other, text):
    model = other()
    before = model.get_weights()
    with pytest.raises(InvalidArgument, match=rf"{checkpoint.name}`: expected a checkpoint of the same arch.*{text}"):
        restore_checkpoint(model, checkpoint)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_of_nested_models_are_compared(tmp_path, images, labels):
    path = tmp_path / "checkpoint.weights.h5"
    callback = EpochCheckpoint(lambda epoch: path, 0, lambda epoch, logs: None)

    def nested(filters):
        inner = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(filters, 3, name="inside")])
        return network(inner, *layers()[1:])

    nested(4).fit(images, labels, verbose=0, callbacks=[callback])
    with pytest.raises(InvalidArgument, match=r"\(3, 3, 3, 4\) for `kernel` of layer 1, `inside`"):
        restore_checkpoint(nested(6), path)


def test_a_ppi_model_refuses_the_checkpoint_of_its_backbone(ppi, plain, images, labels, tmp_path):
    path = tmp_path / "checkpoint.weights.h5"
    callback = EpochCheckpoint(lambda epoch: path, 0, lambda epoch, logs: None)
    model = ppi()
    model.fit(images, labels, verbose=0, callbacks=[callback])
    restored = ppi()
    restored.set_weights([np.zeros_like(weight) for weight in restored.get_weights()])
    restore_checkpoint(restored, path)
    for old, new in zip(model.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    wider = plain(filters=7)
    with pytest.raises(InvalidArgument, match=r"\(3, 3, 3, 4\) for `kernel` of layer 1, `features`"):
        restore_checkpoint(wider, path)


def test_weights_that_keras_saved_are_loaded_if_they_fit(tmp_path, images, labels):
    """Without the record of the architecture, Keras says what is wrong."""
    path = tmp_path / "other.weights.h5"
    model = network(*layers())
    model.train_on_batch(images, labels)
    model.save_weights(path)
    restored = network(*layers())
    restore_checkpoint(restored, path)
    np.testing.assert_array_equal(restored.get_weights()[0], model.get_weights()[0])
    with pytest.raises(InvalidArgument, match="expected a checkpoint of the same architecture; received A total of"):
        restore_checkpoint(network(*layers(filters=9)), path)


def test_models_and_files_that_cannot_be_restored(tmp_path, checkpoint):
    with pytest.raises(InvalidArgument, match="built and compiled; received a model that is not compiled"):
        restore_checkpoint(keras.Sequential([keras.Input((8, 8, 3)), *layers()]), checkpoint)
    unbuilt = keras.Sequential(layers())
    unbuilt.compile("adam", "mse")
    with pytest.raises(InvalidArgument, match=r"received a model that is not built\. Begin it with keras\.Input"):
        restore_checkpoint(unbuilt, checkpoint)
    with pytest.raises(RunError, match=r"missing\.weights\.h5: the checkpoint cannot be read: there is no such file"):
        restore_checkpoint(network(*layers()), tmp_path / "missing.weights.h5")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(RunError, match=r"the checkpoint cannot be read: .*Go on from an earlier one"):
        restore_checkpoint(network(*layers()), checkpoint)
