import inspect
from typing import get_args

import keras
import numpy as np
import pytest

from tfcausal.config import DFRConfig, TrainingSaliency, config_from_mapping
from tfcausal.data.image_set import DataSet, ImageSet
from tfcausal.errors import InvalidArgument
from tfcausal.models import building
from tfcausal.models.backbones.vgg import vgg
from tfcausal.models.balanced_regression import INVERSE_STRENGTHS
from tfcausal.models.building import build_backbone, build_model
from tfcausal.models.cfcn import CFCNModel
from tfcausal.models.gain import GAINModel
from tfcausal.models.ppi import PPIModel
from tfcausal.models.rrr import RRRModel
from tfcausal.saliency.composites import COMPOSITES

TINY = {"name": "vgg", "blocks": [[4], [6]], "dense_units": [5], "dropout": 0.1}


def configured(model=None, backbone=TINY, training=None):
    models = {"m": model or {"method": "plain"}}
    source = {"source": "image_folder", "path": "nowhere", "image_size": 96}
    return config_from_mapping(
        {"version": 1, "name": "x", "data": source, "backbone": backbone, "models": models, "training": training or {}}
    )


def data(shape=(16, 16, 3)):
    images = ImageSet(("a",), np.array([0]), ("x", "y"), shape, np.array([True]), lambda indices: (None, None))
    return DataSet({"train": images})


def built(model=None, training=None, backbone=TINY):
    config = configured(model, backbone, training)
    return build_model(config, config.models["m"], data(), 7)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"filters": [4, 5], "strides": [2, 1], "dropout": 0.2, "class_map_activation": "relu"}, {"filters": (4, 5)}),
        ({"filters": [4], "head": "feature_maps", "feature_maps": 3}, {"feature_maps": 3, "strides": (1,)}),
        ({"name": "vgg", "blocks": [[4], [5, 6]], "batch_norm": True}, {"blocks": ((4,), (5, 6)), "batch_norm": True}),
        ({"name": "vgg11", "dense_units": [8]}, {"dense_units": (8,)}),
        ({"name": "vgg16", "dropout": 0.25}, {"dropout": 0.25, "weights": None}),
        ({"name": "vgg19", "dense_units": []}, {"dense_units": ()}),
        ({"name": "inception_v3", "dropout": 0.5}, {"dropout": 0.5, "weights": None}),
        ({"name": "densenet121"}, {"dropout": 0.0, "classifier_activation": "softmax"}),
        ({"name": "two_convolutions", "filters": [3, 4]}, {"filters": (3, 4)}),
    ],
)
def test_every_setting_of_a_backbone_reaches_its_builder(monkeypatch, backbone, expected):
    config = configured(backbone=backbone).backbone
    builder = building._BACKBONES[config.name]
    seen = {}

    def recorded(*arguments, **settings):
        seen.update(inspect.signature(builder).bind(*arguments, **settings).arguments)
        return "network"

    monkeypatch.setitem(building._BACKBONES, config.name, recorded)
    assert build_backbone(config, (96, 96, 3), 2) == "network"
    assert seen.items() >= {"input_shape": (96, 96, 3), "num_classes": 2, **expected}.items()
    left_to_the_builder = set(inspect.signature(builder).parameters) - seen.keys()
    assert left_to_the_builder <= {"name"}


def test_the_backbone_ends_with_a_softmax_over_the_classes():
    network = build_backbone(configured().backbone, (16, 16, 3), 5)
    answer = network.predict(np.random.default_rng(0).normal(size=(3, 16, 16, 3)), verbose=0)
    assert answer.shape == (3, 5)
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "module"),
    [("vgg16", "vgg16"), ("vgg19", "vgg19"), ("inception_v3", "inception_v3"), ("densenet121", "densenet")],
)
def test_pretrained_networks_see_what_keras_trained_them_on(name, module):
    """Against `preprocess_input` of the network's own module, on pixels in [0, 255]."""
    network = vgg((16, 16, 3), 4, blocks=((5,),), dense_units=(), dropout=0.0)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype("float32")
    expected = network.predict(getattr(keras.applications, module).preprocess_input(pixels.copy()), verbose=0)
    adapted = building._with_preprocessing(network, name)
    np.testing.assert_allclose(adapted.predict(pixels / 255 - 0.5, verbose=0), expected, atol=1e-4)
    assert [layer.name for layer in adapted.layers][1:3] == ["preprocessing", "block1_conv1"]


def test_a_network_with_weights_from_a_file(tmp_path):
    source = keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = tmp_path / "densenet.weights.h5"
    source.save_weights(path)
    config = configured(backbone={"name": "densenet121", "weights": str(path)}).backbone
    network = build_backbone(config, (32, 32, 3), 3)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    features = source.predict(keras.applications.densenet.preprocess_input(pixels.copy()), verbose=0).mean(axis=(1, 2))
    trunk = keras.Model(network.input, network.get_layer("avg_pool").output)
    np.testing.assert_allclose(trunk.predict(pixels / 255 - 0.5, verbose=0), features, rtol=1e-3, atol=1e-4)


MASKING = {"threshold": 0.4, "sharpness": 11.0, "masked_value": [0.1, 0.2, -0.3], "warm_up_epochs": 2, "ramp_epochs": 3}


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        (
            PPIModel,
            "ppi",
            {
                **MASKING,
                "contrast": "negated",
                "contrast_weight": 0.5,
                "regularisation_weight": 0.25,
                "regularised": "all_classes",
                "adversarial_weight": 0.75,
                "divergence_limit": 9.0,
            },
        ),
        (PPIModel, "ppi", {"threshold_quantile": 0.7, "second_order": False, "regularisation_weight": 0.0}),
        (PPIModel, "ppi", {"saliency": "grad_cam", "layer": "block1_conv1", "largest_component": True, "mask": "box"}),
        (PPIModel, "ppi", {"saliency": "lrp.gamma", "contrast": "probability"}),
        (CFCNModel, "cfcn", {"variant": "F", "alpha": 0.3, "layer": "block1_conv1", "resize": "maps"}),
        (CFCNModel, "cfcn", {"variant": "F", "warm_up_epochs": 1, "ramp_epochs": 4}),
        (GAINModel, "gain", {**MASKING, "attention_weight": 0.5, "layer": "block1_conv1"}),
        (GAINModel, "gain", {"attention_weight": 0.0, "supervision_weight": 8.0}),
        (RRRModel, "rrr", {"penalty_weight": 0.01, "warm_up_epochs": 1, "ramp_epochs": 2}),
    ],
)
def test_every_setting_of_a_method_reaches_its_model(kind, method, options):
    network = built({"method": method, **options})
    assert type(network) is kind
    assert network.get_config().items() >= options.items()


def test_what_is_left_out_of_a_method_is_what_the_configuration_says():
    """The defaults of the configuration and those of the constructors, but for the warm-up, are the same."""
    for method, kind in (("ppi", PPIModel), ("cfcn", CFCNModel), ("gain", GAINModel), ("rrr", RRRModel)):
        variant = {"variant": "F"} if method == "cfcn" else {}
        configured_one = built({"method": method, **variant}).get_config()
        constructed = kind(build_backbone(configured().backbone, (16, 16, 3), 2), **variant).get_config()
        same = configured_one.keys() - {"backbone", "name", "warm_up_epochs"}
        assert {key: configured_one[key] for key in same} == {key: constructed[key] for key in same}


def test_the_names_of_a_configuration_are_those_that_there_are():
    assert set(get_args(TrainingSaliency)) == {"wbp", "gradient", "grad_cam", *(f"lrp.{name}" for name in COMPOSITES)}
    assert DFRConfig(method="dfr", of="m").inverse_strengths == INVERSE_STRENGTHS


def test_the_z_box_rule_is_given_the_pixels_of_a_run():
    network = built({"method": "ppi", "saliency": "lrp.epsilon_gamma_box"})
    assert (network.low, network.high) == (-0.5, 0.5)
    assert built({"method": "ppi", "saliency": "lrp.gamma"}).low is None


def test_one_masked_value_is_a_number():
    assert built({"method": "gain", "masked_value": 0.25}).masked_value == 0.25


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("method", ["plain", "ppi"])
def test_a_precision_is_that_of_the_model_alone(precision, method):
    before = keras.config.dtype_policy().name
    network = built({"method": method}, {"precision": precision})
    assert keras.config.dtype_policy().name == before == "float32"
    assert network.compute_dtype == precision.removeprefix("mixed_")
    assert {weight.dtype for weight in network.trainable_weights} == {"float32"}
    assert type(network.optimizer).__name__ == ("LossScaleOptimizer" if precision == "mixed_float16" else "Adam")


def test_a_precision_is_taken_back_where_a_model_cannot_be_built():
    with pytest.raises(InvalidArgument, match="layer"):
        built({"method": "ppi", "saliency": "grad_cam", "layer": "no_such"}, {"precision": "mixed_bfloat16"})
    assert keras.config.dtype_policy().name == "float32"


def test_epochs_of_a_model_are_the_length_of_its_schedule():
    longer = built({"method": "plain", "epochs": 6}, {"epochs": 3})
    longer.optimizer.iterations.assign(3 * 7)
    assert float(longer.optimizer.learning_rate) == pytest.approx(0.0005)  # half the way down the cosine
    longer.optimizer.iterations.assign(6 * 7)
    assert float(longer.optimizer.learning_rate) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_shrinks_the_weights(optimizer):
    """With gradients of zero, a step takes off the share `learning_rate * weight_decay`."""
    training = {"optimizer": optimizer, "learning_rate": 0.1, "learning_rate_schedule": "constant"}
    for decay in (0.0, 0.5):
        network = built(training={**training, "weight_decay": decay})
        before = [weight.numpy() for weight in network.trainable_weights]
        network.optimizer.apply([0 * weight for weight in before], network.trainable_weights)
        for old, weight in zip(before, network.trainable_weights, strict=True):
            np.testing.assert_allclose(weight.numpy(), old * (1 - 0.1 * decay), rtol=1e-5)


def test_equal_seeds_give_equal_weights_to_every_method():
    one, other = built(), built({"method": "rrr"}).backbone
    for first, second in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_last_layer_retraining_builds_no_network():
    config = config_from_mapping(
        {
            "version": 1,
            "name": "x",
            "data": {"source": "image_folder", "path": "nowhere"},
            "backbone": TINY,
            "models": {"m": {"method": "plain"}, "d": {"method": "dfr", "of": "m"}},
        }
    )
    with pytest.raises(InvalidArgument, match="`model`: expected a method that trains a network"):
        build_model(config, config.models["d"], data(), 7)
