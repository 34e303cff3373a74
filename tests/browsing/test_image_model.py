import keras
import numpy as np
import pytest

from tfcausal.browsing.image_model import ImageModel, as_inputs
from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.models.loading import load_trained


def network(shape=(6, 6, 1), activation="softmax", scaled=False):
    layers = [keras.layers.Rescaling(1 / 127.5, -1.0)] if scaled else []
    layers += [keras.layers.Conv2D(2, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input(shape), *layers, keras.layers.Dense(3, activation=activation)])


@pytest.fixture
def saved(tmp_path):
    def save(model, suffix=".keras"):
        model.save(tmp_path / f"model{suffix}")
        return ImageModel(load_trained(tmp_path / f"model{suffix}"))

    return save


def test_a_file_tells_what_it_takes_as_the_command_line_reads_it(saved):
    shown = saved(network())
    assert shown.image_shape() == (6, 6, 1)
    assert shown.image_shape((6, 6)) == (6, 6, 1)
    assert (shown.class_names, shown.kind, shown.takes_any_size) == (("0", "1", "2"), "softmax", False)
    assert shown.pixels == (0.0, 1.0)
    assert "does not begin with a layer that scales them" in shown.guess
    scaled = saved(network(activation="sigmoid", scaled=True))
    assert (scaled.pixels, scaled.kind) == ((0.0, 255.0), "sigmoid")
    assert "begins with a layer that scales them" in scaled.guess
    assert "--pixels" not in scaled.guess  # the page has a widget for it


def test_the_classifier_answers_in_the_range_that_was_chosen(saved):
    model = network(activation=None)
    shown = saved(model)
    assert shown.kind == "linear"
    pictures = np.random.default_rng(0).random((2, 6, 6, 1)).astype(np.float32)
    for pixels, inputs in ((None, pictures), ((-1.0, 1.0), 2 * pictures - 1), ((255.0, 0.0), 255 - 255 * pictures)):
        classifier = shown.classifier(pixels)
        assert classifier.class_names == ("0", "1", "2")
        given = as_inputs(pictures, classifier.pixels)
        assert given.dtype == np.float32
        np.testing.assert_allclose(classifier.answers(given), model(inputs), rtol=1e-4, atol=1e-4)
    for pixels in ((1.0, 1.0), (0.0, np.inf)):
        with pytest.raises(InvalidArgument, match="two different finite numbers"):
            shown.classifier(pixels)


def test_a_model_of_any_size_has_to_be_told_one(saved):
    shown = saved(network((None, None, 3)))
    assert shown.takes_any_size
    with pytest.raises(InvalidArgument, match="This model takes images of any size: say which"):
        shown.image_shape()
    assert shown.image_shape((20, 30)) == (20, 30, 3)
    for size in ((0, 30), (20, 1025), (-1, -1)):
        with pytest.raises(InvalidArgument, match="from 1 to 1024"):
            shown.image_shape(size)
    half = saved(network((None, 8, 1)))
    assert half.image_shape((5, 8)) == (5, 8, 1)
    with pytest.raises(InvalidArgument, match="any x 8; received 5 x 9"):
        half.image_shape((5, 9))


def test_other_models_are_refused(saved):
    flat = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    colours = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Flatten(), keras.layers.Dense(3)])
    for model in (flat, colours):
        with pytest.raises(UnsupportedOperation, match="takes models of one image"):
            saved(model)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_file_is_never_run(tmp_path, suffix):
    flag = tmp_path / "it ran"
    harm = eval(f"lambda x: (__import__('pathlib').Path({str(flag)!r}).touch(), x)[1]")
    inputs = keras.Input((4, 4, 1))
    hidden = keras.layers.Lambda(harm)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(hidden)))
    model.save(tmp_path / f"model{suffix}")
    flag.unlink()  # to build the model was to run it
    keras.models.load_model(tmp_path / f"model{suffix}", compile=False, safe_mode=False)
    assert flag.exists()  # and so is to load it otherwise
    flag.unlink()
    with pytest.raises(InvalidArgument, match=r"without running Python code.*which is never run: a Lambda layer"):
        load_trained(tmp_path / f"model{suffix}")
    assert not flag.exists()
