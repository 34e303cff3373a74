import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose, assert_array_equal

from tfcausal.browsing.classifier import LoadedClassifier
from tfcausal.browsing.concept_levels import Level
from tfcausal.browsing.interventions import PIXEL_EFFECTS, Comparison, Interventions, answers, in_words
from tfcausal.effects.image_effects import ImageEffects
from tfcausal.errors import InvalidArgument, UnsupportedOperation
from tfcausal.interventions import art_classifier
from tfcausal.interventions.adversarial import get_attack
from tfcausal.models.loading import LoadedModel
from tfcausal.saliency.gradients import Gradient
from tfcausal.saliency.wbp import WBP

CAUSE = (slice(2, 6), slice(3, 8))


def softmax(logits):
    shares = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return shares / shares.sum()


def interventions_of(model, pixels=(-0.5, 0.5), **settings):
    names = tuple("abcdefgh"[: model.output_shape[-1]])
    return Interventions(LoadedClassifier(LoadedModel(model, "a model", names, pixels)), **settings)


@pytest.fixture(scope="module")
def planted():
    """A classifier that answers b where a known region is bright and a else, whatever the rest of the image is."""
    inputs = keras.Input((12, 12, 1))
    outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs)
    weights = np.zeros((12, 12, 3), np.float32)
    weights[(*CAUSE, 1)] = 8.0 / 20
    model.set_weights([weights.reshape(144, 3), np.array([1.0, 0.0, -1.0], np.float32)])
    return model


@pytest.fixture(scope="module")
def convolved():
    """A classifier whose channels enter the logits by the rows of one matrix."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((10, 10, 1))
    maps = keras.layers.Conv2D(4, 3, activation="relu", name="maps")(inputs)
    head = keras.layers.Dense(3, activation="softmax", kernel_initializer=keras.initializers.RandomNormal(0, 4))
    return keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(maps)))


@pytest.fixture
def image():
    picture = np.random.default_rng(1).uniform(-0.5, 0.5, (12, 12, 1)).astype(np.float32)
    picture[CAUSE] = 0.5
    return picture


@pytest.fixture
def small_image():
    return np.random.default_rng(2).uniform(-0.5, 0.5, (10, 10, 1)).astype(np.float32)


@pytest.fixture
def cause():
    mask = np.zeros((12, 12), bool)
    mask[CAUSE] = True
    return mask


def without(model, nodes):
    """The same classifier whose dense layer does not read some channels."""
    other = keras.models.clone_model(model)
    conv, conv_bias, dense, bias = model.get_weights()
    dense[list(nodes)] = 0
    other.set_weights([conv, conv_bias, dense, bias])
    return other


def test_masking_the_cause_changes_the_answer_and_masking_elsewhere_does_not(planted, image, cause):
    interventions = interventions_of(planted)
    found = interventions.compare(image, interventions.masked(image, cause))
    before, after = softmax([1, 4, -1]), softmax([1, 0, -1])
    assert_allclose(found.before, before, atol=1e-6)
    assert_allclose(found.after, after, atol=1e-6)
    assert_allclose(found.effects, after - before, atol=1e-6)
    assert in_words(found, "abc") == "The answer changed from b to a. b: p 0.95 → 0.24; a: p 0.05 → 0.67."
    elsewhere = interventions.masked(image, ~cause, value=1.0)
    assert (elsewhere[~cause] == 0.5).all()
    assert_array_equal(elsewhere[cause], image[cause])
    assert_allclose(interventions.compare(image, elsewhere).effects, 0, atol=1e-7)
    assert_array_equal(interventions.compare(image, image.copy()).effects, np.zeros(3))


@pytest.mark.parametrize(("pixels", "value", "masked"), [((0.0, 255.0), 0.2, 51.0), ((1.0, -1.0), 0.25, 0.5)])
def test_a_masked_pixel_becomes_a_share_of_the_way_from_black_to_white(planted, image, cause, pixels, value, masked):
    changed = interventions_of(planted, pixels).masked(image, cause, value)
    assert_allclose(changed[cause], masked, rtol=1e-6)
    assert_array_equal(changed[~cause], image[~cause])


def test_effects_on_the_image_are_those_of_image_effects(convolved, small_image):
    interventions = interventions_of(convolved)
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    changed = interventions.masked(small_image, mask)
    result = ImageEffects(convolved)(changed[None], small_image[None])
    found = interventions.compare(small_image, changed)
    assert_array_equal(found.effects, result.effects[0, 0, 0])
    assert_array_equal(found.network, found.before)


@pytest.mark.parametrize("nodes", [(2,), (3, 0)])
def test_zeroing_channels_is_the_network_that_does_not_read_them(convolved, small_image, nodes):
    interventions = interventions_of(convolved)
    level = interventions.levels[0].name
    other = without(convolved, nodes)
    changed = interventions.masked(small_image, np.eye(10, dtype=bool))
    for second in (small_image, changed):
        found = interventions.compare(small_image, second, level, nodes)
        assert_allclose(found.before, convolved(small_image[None])[0], atol=1e-6)
        assert_allclose(found.after, other(second[None])[0], atol=1e-6)
        assert_array_equal(found.network, found.before)
        for method, explainer in (("wbp", WBP), ("gradient", Gradient)):
            first = interventions.map(method, small_image, 1, level)
            assert_allclose(first, explainer(convolved)(small_image[None], [1], "sum")[0, ..., 0], atol=1e-6)
            assert_array_equal(first, interventions.map(method, small_image, 1))
            zeroed = interventions.map(method, second, 1, level, nodes)
            assert_allclose(zeroed, explainer(other)(second[None], [1], "sum")[0, ..., 0], atol=1e-6)
            assert np.abs(zeroed - first).max() > 1e-3
    assert_array_equal(interventions.compare(small_image, changed, level, ()).network, found.network)


def test_each_concept_alone_has_the_effect_of_the_network_that_does_not_read_it(convolved, small_image):
    interventions = interventions_of(convolved)
    level = interventions.levels[0].name
    assert interventions.concepts(level) == 4
    effects = interventions.concept_effects(small_image, level)
    before = convolved(small_image[None]).numpy()[0]
    expected = [without(convolved, [node])(small_image[None]).numpy()[0] - before for node in range(4)]
    assert_allclose(effects, expected, atol=1e-6)


def test_concept_maps_are_the_channels_enlarged(convolved, small_image):
    interventions = interventions_of(convolved)
    maps = interventions.concept_maps(small_image, "channels maps", [3, 1])
    channels = convolved.get_layer("maps")(small_image[None])
    assert_allclose(maps, np.moveaxis(tf.image.resize(channels, (10, 10)).numpy()[0], -1, 0)[[3, 1]], atol=1e-6)


def test_the_pixel_wise_map_is_positive_at_the_cause_alone(planted, image, cause):
    found = interventions_of(planted).map(PIXEL_EFFECTS, image, 1)
    assert found[CAUSE].min() > 0.01
    far = np.ones_like(cause)
    far[1:7, 2:9] = False
    assert_allclose(found[far], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fgsm", {}), ("bim", {"steps": 3}), ("pgd", {"steps": 4, "seed": 5}), ("pgd", {"steps": 1}), ("jsma", {})],
)
def test_attacks_of_any_strength_are_those_of_get_attack(planted, image, name, settings):
    interventions = interventions_of(planted)
    interventions.attacked(image, "fgsm", 0.3)
    compiled = interventions._attack.classifier
    for eps in (0.05, 0.2):
        expected = get_attack(name, planted, (-0.5, 0.5), eps, **settings)(image[None])[0]
        changed = interventions.attacked(image, name, eps, **settings)
        assert_array_equal(changed, expected)
        assert not np.array_equal(changed, image)
    assert interventions._attack.classifier is compiled


def test_without_art_the_error_names_the_extra(planted, image, monkeypatch):
    def missing(name):
        raise ImportError("No module named 'art'")

    monkeypatch.setattr(art_classifier, "import_module", missing)
    with pytest.raises(UnsupportedOperation, match=r"pip install \"tfcausal\[adversarial\]\""):
        interventions_of(planted).attacked(image, "fgsm", 0.1)


def test_the_model_stays_as_it_was_and_few_levels_stay_open(small_image):
    x = inputs = keras.Input((10, 10, 1))
    for name in "abcde":
        x = keras.layers.Conv2D(2, 1, name=name)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    weights, nodes = model.get_weights(), [len(layer._inbound_nodes) for layer in model.layers]
    interventions = interventions_of(model)
    assert [level.name for level in interventions.levels] == ["channels e", "channels c"]
    before = model.predict(small_image[None], verbose=0)
    for level in ("channels e", "channels c", "channels e"):
        interventions.map("wbp", small_image, 0, level, [1])
        interventions.map(PIXEL_EFFECTS, small_image, 0, level, [1])
        interventions.compare(small_image, None, level, [0])
    interventions.attacked(small_image, "fgsm", 0.1)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    for kept, now in zip(weights, model.get_weights(), strict=True):
        assert_array_equal(now, kept)
    assert_array_equal(model.predict(small_image[None], verbose=0), before)


def test_of_many_levels_those_used_last_stay_open(small_image, monkeypatch):
    x = inputs = keras.Input((10, 10, 1))
    for name in "abcde":
        x = keras.layers.Conv2D(2, 1, name=name)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    levels = [Level(name, name) for name in "abcd"]
    interventions = interventions_of(model, levels=levels)
    for name in ("a", "b", "a", "c", "d"):
        interventions.map(PIXEL_EFFECTS, small_image, 0, name)
    assert list(interventions._open) == ["a", "c", "d"]
    assert list(interventions._pixel_effects) == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("head", "outputs", "expected", "words"),
    [
        ("sigmoid", 1, ((0,), ()), "The answer changed from a to none. a: p 0.73 → 0.27."),
        (None, 1, ((0,), ()), "The answer changed from a to none. a: logit 1.00 → -1.00."),
        ("sigmoid", 2, ((0, 1), ()), "The answer changed from a and b to none. a: p 0.73 → 0.27; b: p 0.73 → 0.27."),
        (None, 2, ((0,), (0,)), "The answer stays a. a: logit 1.00 → -1.00."),
    ],
)
def test_other_heads_answer_in_their_own_way(head, outputs, expected, words):
    dense = keras.layers.Dense(outputs, activation=head, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), dense])
    interventions = interventions_of(model)
    image = np.full((2, 2, 1), 0.25, np.float32)
    found = interventions.compare(image, -image)
    assert (answers(found.before, found.kind), answers(found.after, found.kind)) == expected
    assert in_words(found, "ab"[:outputs]) == words
    assert interventions.levels == ()
    if outputs == 2 and head == "sigmoid":
        with pytest.raises(InvalidArgument, match="do not exclude each other"):
            interventions.attacked(image, "jsma", 0.1)


def test_no_label_before_or_after_is_said(planted):
    nothing = np.array([0.2, 0.3])
    found = Comparison(nothing, nothing, nothing, "sigmoid")
    assert in_words(found, ["a", "b"]) == "The answer stays none. a: p 0.20 → 0.20."


WRONG = [
    (lambda i, x: i.masked(x, np.zeros((3, 3), bool)), "`mask`: expected booleans of shape \\(10, 10\\)"),
    (lambda i, x: i.masked(x, np.zeros((10, 10))), "`mask`: expected booleans"),
    (lambda i, x: i.masked(x, np.zeros((10, 10), bool), 1.5), "`value`: expected a number from 0, black"),
    (lambda i, x: i.masked(x, np.zeros((10, 10), bool), float("nan")), "`value`"),
    (lambda i, x: i.masked(x[:5], np.zeros((5, 10), bool)), "`image`"),
    (lambda i, x: i.compare(x * np.nan), "NaN"),
    (lambda i, x: i.compare(x, x[:5]), "`changed`"),
    (lambda i, x: i.compare(x, None, "channels map", [0]), "`channels maps`"),
    (lambda i, x: i.compare(x, None, "channels maps", [4]), r"`nodes`: expected different concepts in \[0, 3\]"),
    (lambda i, x: i.map("wbp", x, 0, "channels maps", [1, 1]), "`nodes`"),
    (lambda i, x: i.concept_maps(x, "channels maps", [-1]), "`nodes`"),
    (lambda i, x: i.concept_effects(x, "../../etc/passwd"), "`level`"),
    (lambda i, x: i.map("nothing", x, 0), "nothing"),
    (lambda i, x: i.map("wbp", x, 3), "target"),
    (lambda i, x: i.attacked(x, "fgsmm", 0.1), "`name`: expected one of fgsm"),
    (lambda i, x: i.attacked(x, "fgsm", 0.0), "`eps`"),
    (lambda i, x: i.attacked(x, "fgsm", float("nan")), "`eps`"),
    (lambda i, x: i.attacked(x, "pgd", 0.1, steps=0), "steps"),
    (lambda i, x: i.attacked(x, "pgd", 0.1, seed=-1), "seed"),
    (lambda i, x: i.attacked(x + 3, "fgsm", 0.1), "clip_values"),
]


@pytest.fixture(scope="module")
def shared(convolved):
    return interventions_of(convolved)


@pytest.mark.parametrize(("wrong", "text"), WRONG)
def test_bad_input_is_an_error_that_names_it(shared, small_image, wrong, text):
    with pytest.raises(InvalidArgument, match=text):
        wrong(shared, small_image)
