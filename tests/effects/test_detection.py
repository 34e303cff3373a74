"""Detectors on planted scores: what they find, and that they look at nothing they must not see."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tfcausal.effects.detection import ImageSplit, detect, split_images
from tfcausal.effects.features import MAP_STATISTICS, largest_effect, low_confidence, map_statistics
from tfcausal.errors import InvalidArgument
from tfcausal.evaluation import roc

SPLIT = split_images(300, seed=4)


def shifted(shift: float, seed: int = 0, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Clean and attacked scores with a known area between them: Phi(shift / sqrt 2)."""
    random = np.random.default_rng(seed)
    return random.normal(size=count), random.normal(size=count) + shift


def one(clean, attacked, split=SPLIT, **options):
    (detection,) = detect({"effects": clean}, {"fgsm": {"effects": attacked}}, split, **options)
    return detection


def test_planted_separations():
    """20000 images, so that the area is that of the normal distributions to 0.01."""
    for shift, truth in ((0.0, 0.5), (1.0, 0.5 * math.erfc(-0.5)), (3.0, 0.5 * math.erfc(-1.5))):
        detection = one(*shifted(shift, count=20000), split_images(20000))
        assert detection.area.value == pytest.approx(truth, abs=0.01)
        assert detection.area.low < detection.area.value < detection.area.high
        assert (detection.n_clean, detection.n_attacked, detection.features) == (8000, 8000, 0)
        # Youden's threshold lies halfway between the means: both rates are right with Phi(shift / 2) there.
        index = detection.point.true_positive_rate.value - detection.point.false_positive_rate.value
        assert index == pytest.approx(math.erfc(-shift / 2 / math.sqrt(2)) - 1, abs=0.02)


def test_results_are_those_of_the_test_part():
    clean, attacked = shifted(1.0)
    detection = one(clean, attacked)
    scores = np.concatenate([clean[SPLIT.test], attacked[SPLIT.test]])
    labels, images = np.repeat([0, 1], len(SPLIT.test)), np.tile(SPLIT.test, 2)
    assert detection.area == roc.area(labels, scores, images)
    np.testing.assert_array_equal(detection.curve.thresholds, roc.roc_curve(labels, scores).thresholds)
    validation = np.concatenate([clean[SPLIT.validation], attacked[SPLIT.validation]])
    threshold = roc.youden_threshold(np.repeat([0, 1], len(SPLIT.validation)), validation)
    assert detection.point == roc.operating_point(labels, scores, threshold)


def test_a_false_positive_rate_for_the_threshold():
    clean, attacked = shifted(2.0)
    detection = one(clean, attacked, rule="false_positive_rate", false_positive_rate=0.1)
    assert (clean[SPLIT.validation] >= detection.point.threshold).mean() == pytest.approx(0.1)
    assert detection.point.false_positive_rate.low <= 0.1 <= detection.point.false_positive_rate.high


def test_several_features_are_fitted_whatever_their_scale_and_direction():
    """Two signals of 1.2 deviations, one of them down: alone Phi(1.2 / sqrt 2), together Phi(1.2)."""
    random = np.random.default_rng(1)
    clean, attacked = random.normal(size=(2, 4000, 2))
    attacked += [1.2, -1.2]
    scales, split = [1000.0, 0.001], split_images(4000)
    both = one(clean * scales, attacked * scales, split)
    assert both.area.value == pytest.approx(0.5 * math.erfc(-1.2 / math.sqrt(2)), abs=0.02)
    assert both.features == 2
    alone = one(clean[:, 1:], attacked[:, 1:], split)
    assert alone.area.value == pytest.approx(0.5 * math.erfc(-0.6), abs=0.02)
    as_it_is = one(clean[:, 1], attacked[:, 1], split)
    assert as_it_is.area.value == pytest.approx(1 - alone.area.value)


def test_the_regression_is_the_one_described():
    random = np.random.default_rng(2)
    clean, attacked = (
        random.normal(size=(300, 4)) * [1, 10, 0.1, 0],
        random.normal(size=(300, 4)) * [2, 10, 0.1, 0],
    )
    some = random.random(300) < 0.4
    detection = one(clean, attacked, successful={"fgsm": some}, only_successful=True)
    used = SPLIT.fit[some[SPLIT.fit]]
    fit, labels = np.concatenate([clean[SPLIT.fit], attacked[used]]), np.repeat([0, 1], [len(SPLIT.fit), len(used)])
    mean, deviation = fit.mean(axis=0), fit.std(axis=0)
    deviation[3] = 1.0
    weights = np.where(labels, len(fit) / len(used), len(fit) / len(SPLIT.fit)) / 2
    regression = LogisticRegression(C=1.0, max_iter=10_000).fit((fit - mean) / deviation, labels, weights)
    test = np.concatenate([clean[SPLIT.test], attacked[SPLIT.test[some[SPLIT.test]]]])
    np.testing.assert_allclose(detection.scores, regression.decision_function((test - mean) / deviation), atol=1e-3)


def test_without_a_signal_95_percent_of_the_intervals_contain_one_half():
    """Fitted on nothing but noise, whose clean and attacked versions have an image in common."""
    covered = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        image = random.normal(size=(120, 3))
        versions = [image + 0.5 * random.normal(size=(120, 3)) for _ in range(2)]
        estimate = one(*versions, split_images(120, seed=seed)).area
        covered.append(estimate.low <= 0.5 <= estimate.high)
    assert 0.91 <= np.mean(covered) <= 0.985


def test_the_threshold_and_the_regression_do_not_see_the_test_part():
    random = np.random.default_rng(3)
    clean, attacked = random.normal(size=(300, 3)), random.normal(size=(300, 3)) + 0.5
    before = one(clean, attacked)
    for values in (clean, attacked):
        values[SPLIT.test] = 5 * values[SPLIT.test][::-1] + 7
    after = one(clean, attacked)
    assert after.point.threshold == before.point.threshold
    assert after.area != before.area
    clean[SPLIT.validation] -= 1.0
    assert one(clean, attacked).point.threshold != before.point.threshold
    np.testing.assert_array_equal(one(clean, attacked).scores, after.scores)


def test_versions_of_an_image_in_different_parts_would_be_found_out():
    """Features that say which image it is, and nothing else. With the versions apart, who has learned the clean one by
    heart takes the attacked one for clean: the area is 0. Here all images of the test part are new: it is one half."""
    identity = np.eye(60)
    split = split_images(60, seed=1)
    assert one(identity, identity, split).area.value == 0.5
    rows, labels = np.concatenate([identity, identity]), np.repeat([0, 1], 60)
    order = np.random.default_rng(0).permutation(120)
    regression = LogisticRegression().fit(rows[order[:60]], labels[order[:60]])
    leaky = roc.area(labels[order[60:]], regression.decision_function(rows[order[60:]]))
    assert leaky.high < 0.3


def test_images_of_a_patient_are_in_one_part_and_count_as_one_cluster():
    patients = np.repeat(np.arange(60), 5)
    split = split_images(300, groups=patients, seed=2)
    parts = [set(patients[images]) for images in (split.fit, split.validation, split.test)]
    assert [len(part) for part in parts] == [24, 12, 24]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert sorted(np.concatenate([split.fit, split.validation, split.test])) == list(range(300))
    clean, attacked = shifted(1.0)
    detection = one(clean, attacked, split, groups=patients)
    test = patients[split.test]
    assert detection.area == roc.area(detection.labels, detection.scores, np.r_[test, test])
    with pytest.raises(InvalidArgument, match=r"`split`: expected parts without an image or group in common; received"):
        one(clean, attacked, SPLIT, groups=patients)


def test_only_successful_attacks():
    clean, attacked = shifted(0.0)
    succeeds = np.random.default_rng(5).random(300) < 0.5
    attacked[succeeds] += 4.0
    every = one(clean, attacked, successful={"fgsm": succeeds})
    only = one(clean, attacked, successful={"fgsm": succeeds}, only_successful=True)
    n = int(succeeds[SPLIT.test].sum())
    assert (every.n_clean, every.n_attacked, every.n_successful, every.only_successful) == (120, 120, n, False)
    assert (only.n_clean, only.n_attacked, only.n_successful, only.only_successful) == (120, n, n, True)
    np.testing.assert_array_equal(only.clusters, np.append(SPLIT.test, SPLIT.test[succeeds[SPLIT.test]]))
    assert every.area.high < 0.9 < 0.98 < only.area.low
    assert one(clean, attacked).n_successful is None
    rare = np.zeros(300, bool)
    rare[SPLIT.test] = True
    nothing = one(clean, attacked, successful={"fgsm": rare}, only_successful=True)
    assert (nothing.n_clean, nothing.n_attacked) == (120, 120)
    row = nothing.row()
    assert all(math.isnan(row[name]) for name in ("auc", "low", "threshold", "true_positive_rate_high"))
    assert len(nothing.curve.thresholds) == 0
    with pytest.raises(
        InvalidArgument, match="`successful`: expected an entry for every attack; received none for fgsm"
    ):
        one(clean, attacked, only_successful=True)


def test_an_attack_that_the_detector_does_not_know():
    random = np.random.default_rng(6)
    clean = {"effects": random.normal(size=(300, 2))}
    attacked = {
        "fgsm": {"effects": random.normal((3, 0), size=(300, 2))},
        "pgd": {"effects": random.normal((0, 3), size=(300, 2))},
    }
    known = {detection.attack: detection for detection in detect(clean, attacked, SPLIT)}
    unknown = {detection.attack: detection for detection in detect(clean, attacked, SPLIT, fitted_on="fgsm")}
    assert known["pgd"].area.low > 0.9
    assert unknown["pgd"].area.high < 0.75
    assert unknown["fgsm"].area == known["fgsm"].area
    assert unknown["pgd"].point.threshold == known["fgsm"].point.threshold
    assert (known["pgd"].fitted_on, unknown["pgd"].fitted_on) == ("pgd", "fgsm")


def test_rows_and_comparisons():
    clean, attacked = shifted(1.0)
    noise = np.random.default_rng(7).normal(size=(2, 300))
    detections = detect(
        {"effects": clean, "confidence": noise[0]}, {"pgd": {"confidence": noise[1], "effects": attacked}}, SPLIT
    )
    assert [detection.detector for detection in detections] == ["effects", "confidence"]
    row = detections[0].row()
    assert (row["attack"], row["auc"], row["n_clean"]) == ("pgd", detections[0].area.value, 120)
    assert row["true_positive_rate_low"] == detections[0].point.true_positive_rate.low
    compared = detections[0].against(detections[1])
    assert compared.difference == pytest.approx(detections[0].area.value - detections[1].area.value)
    assert compared.p < 0.01
    images = np.tile(SPLIT.test, 2)
    expected = roc.compare(detections[0].labels, detections[0].scores, detections[1].scores, images)
    assert compared == expected
    other = one(clean, attacked)
    with pytest.raises(
        InvalidArgument, match="`other`: expected a detection of 'pgd' in the same images; received one"
    ):
        detections[0].against(other)


def test_the_same_again():
    random = np.random.default_rng(8)
    clean, attacked = random.normal(size=(300, 5)), random.normal(size=(300, 5)) + 0.3
    assert one(clean, attacked).row() == one(clean, attacked).row()
    assert split_images(50, seed=1).test.tolist() == split_images(50, seed=1).test.tolist()
    assert split_images(50, seed=1).test.tolist() != split_images(50, seed=2).test.tolist()
    tiny = split_images(3, shares=(0.9, 0.05))
    assert [len(part) for part in (tiny.fit, tiny.validation, tiny.test)] == [1, 1, 1]


def features(**changes):
    values = {"clean": {"a": np.zeros(90)}, "attacked": {"x": {"a": np.ones(90)}}, "split": split_images(90)}
    return values | changes


SHARED = ImageSplit(np.arange(30), np.arange(29, 60), np.arange(60, 90))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (features(clean={}), "`clean`: expected the features of at least one detector; received none."),
        (features(attacked={}), "`attacked`: expected at least one attack; received none."),
        (features(attacked={"x": {"b": [1]}}), "`attacked['x']`: expected those of a; received b."),
        (
            features(attacked={"x": {"a": np.ones(89)}}),
            "`attacked['x']['a']`: expected one row for every clean image, sh",
        ),
        (
            features(clean={"a": np.r_[np.zeros(88), np.nan, 1]}),
            "NaN or infinity in 1 of 90 images, first in image 88.",
        ),
        (
            features(clean={"a": np.zeros(90), "b": np.zeros(80)}),
            "`clean['b']`: expected features of 90 images; received",
        ),
        (
            features(clean={"a": np.zeros((90, 2, 2))}),
            "`clean['a']`: expected numbers of shape (N,) or (N, features); ",
        ),
        (features(clean={"a": np.zeros((90, 0))}), "`clean['a']`: expected numbers of shape (N,) or (N, features); "),
        (features(clean={"a": ["x"] * 90}), "`clean['a']`: expected numbers of shape (N,) or (N, features); received"),
        (features(minimum=20), "`split.validation`: expected at least 20 images; received 18. Take more images"),
        (features(split=SHARED), "`split`: expected parts without an image or group in common; received 29 in fit and"),
        (features(split=split_images(100)), "`split.fit`: expected indices in [0, 89], each once; received others"),
        (
            features(split=ImageSplit(*[np.zeros(20)] * 3)),
            "`split.fit`: expected indices of images (n,); received dtype",
        ),
        (features(groups=[1, 2]), "`groups`: expected one value for each of 90 images; received shape (2,)."),
        (
            features(successful={"x": [1] * 90}),
            "`successful['x']`: expected booleans of shape (90,); received shape (90,",
        ),
        (features(rule="best"), "`rule`: expected youden or false_positive_rate; received 'best'."),
        (features(false_positive_rate=1.0), "`false_positive_rate`: expected a number in [0, 1); received 1.0."),
        (
            features(rule="false_positive_rate", false_positive_rate=None),
            "`false_positive_rate`: expected a number in [0, 1); received None.",
        ),
        (features(false_positive_rate="x"), "`false_positive_rate`: expected a number in [0, 1); received 'x'."),
        (features(seed=-1), "`seed`: expected an integer of at least 0; received -1."),
        (features(clean=np.zeros(90)), "`clean`: expected a dictionary of features by detector; received ndarray."),
        (features(attacked={"x": np.ones(90)}), "`attacked['x']`: expected a dictionary of features by detector; rec"),
        (features(attacked=[1]), "`attacked`: expected a dictionary of the features of every attack by its name; rec"),
        (features(successful=[True]), "`successful`: expected a dictionary of booleans by attack; received list."),
        (
            features(clean={"a": [[1.0]] * 89 + [[1.0, 2.0]]}),
            "`clean['a']`: expected numbers of shape (N,) or (N, features); received a list of other",
        ),
        (features(split=(1, 2, 3)), "`split`: expected what split_images gives; received tuple."),
        (
            features(groups=[None, *range(89)]),
            "`groups`: expected names or numbers without gaps; received None in 1 of 90 images, first at 0. Give what",
        ),
        (features(fitted_on="y"), "`fitted_on`: expected None or one of x; received 'y'."),
        (features(minimum=1), "`minimum`: expected an integer of at least 2; received 1."),
    ],
)
def test_bad_input(arguments, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        detect(**arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"count": 2}, "`count`: expected an integer of at least 3; received 2."),
        ({"count": 9, "seed": -1}, "`seed`: expected an integer of at least 0; received -1."),
        ({"count": 9, "shares": (0.5, 0.5)}, "`shares`: expected two shares in (0, 1), in all less than 1; received"),
        (
            {"count": 9, "shares": (0.5,)},
            "`shares`: expected two shares in (0, 1), in all less than 1; received (0.5,)",
        ),
        ({"count": 9, "shares": 0.4}, "`shares`: expected two shares in (0, 1), in all less than 1; received 0.4"),
        (
            {"count": 9, "shares": ("a", "b")},
            "`shares`: expected two shares in (0, 1), in all less than 1; received ('a',",
        ),
        (
            {"count": 9, "shares": (np.nan, 0.2)},
            "`shares`: expected two shares in (0, 1), in all less than 1; received",
        ),
        (
            {"count": 4, "groups": [1.0, 2.0, np.nan, np.nan]},
            "`groups`: expected names or numbers without gaps; received nan in 2 of 4 images, first at 2.",
        ),
        (
            {"count": 4, "groups": np.array(["a", "b", None, "c"], object)},
            "`groups`: expected names or numbers without gaps; received None in 1 of 4 images, first at 2.",
        ),
        (
            {"count": 3, "groups": ["a", "b", np.nan]},
            "`groups`: expected names or numbers without gaps; received nan in 1 of 3 images, first at 2.",
        ),
        (
            {"count": 2 + 1, "groups": [[1], [2, 3], [4]]},
            "`groups`: expected names or numbers without gaps; received [1]",
        ),
        ({"count": 9, "groups": [0] * 9}, "`groups`: expected at least three groups, one for each part; received 1."),
    ],
)
def test_bad_splits(arguments, text):
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        split_images(**arguments)


def test_groups_by_name_or_number_split_alike():
    """Names and numbers in one column, as a table can have them, are names."""
    numbers = np.repeat(np.arange(4), 3)
    for groups in (numbers, numbers.astype(float), [str(number) for number in numbers]):
        np.testing.assert_array_equal(split_images(12, groups=groups).fit, split_images(12, groups=numbers).fit)
    mixed = split_images(4, groups=np.array(["a", 1, 2, "a"], object))
    assert sorted(np.concatenate([mixed.fit, mixed.validation, mixed.test])) == [0, 1, 2, 3]


def test_statistics_of_maps_by_hand():
    """Steps of 1 2 | 0 -3: 2, 0 to the right... down 0-1, -3-2, right 2-1, -3-0 have the sizes 1, 5, 1, 3."""
    values = map_statistics(np.array([[1.0, 2.0], [0.0, -3.0]]).reshape(1, 2, 2, 1))[0]
    entropy = -sum(share * math.log(share) for share in (1 / 6, 2 / 6, 3 / 6)) / math.log(4)
    assert dict(zip(MAP_STATISTICS, values, strict=True)) == pytest.approx(
        {"total_variation": 2.5, "mean_magnitude": 1.5, "largest_magnitude": 3.0, "entropy": entropy}
    )
    same = map_statistics(np.stack([np.full((3, 4, 1), -2.0), np.zeros((3, 4, 1))]))
    np.testing.assert_allclose(same, [[0, 2, 2, 1], [0, 0, 0, 0]], atol=1e-12)
    with pytest.raises(
        InvalidArgument, match=r"`maps`: expected maps of shape \(N, height, width, 1\); received shape"
    ):
        map_statistics(np.zeros((2, 3, 3)))


def test_numbers_by_hand():
    assert low_confidence([[0.2, 0.7, 0.1]]).tolist() == pytest.approx([0.3])
    assert low_confidence([[0.2], [0.9]]).tolist() == pytest.approx([0.2, 0.1])
    assert low_confidence([[0.2, 0.6], [1.0, 0.0]], multi_label=True).tolist() == pytest.approx([0.3, 0.0])
    assert largest_effect(np.array([[[1.0, -3.0]], [[2.0, 0.5]]])).tolist() == [3.0, 2.0]
    for bad in ([0.5, 0.5], [[1.5, 0.0]], [[np.nan, 0.5]]):
        with pytest.raises(
            InvalidArgument, match=r"`outputs`: expected probabilities of shape \(N, classes\); received"
        ):
            low_confidence(bad)
    for call, text in (
        (lambda: low_confidence("a"), r"`outputs`: expected probabilities of shape \(N, classes\); received a str"),
        (lambda: map_statistics("a"), r"`maps`: expected maps of shape \(N, height, width, 1\); received a str"),
        (
            lambda: map_statistics(np.full((1, 2, 2, 1), np.nan)),
            "`maps`: expected finite numbers; received NaN or infinity",
        ),
        (
            lambda: largest_effect(5),
            r"`effects`: expected effects of shape \(N, ...\), at least one; received shape \(\)",
        ),
        (lambda: largest_effect([]), r"`effects`: expected .*, at least one; received shape \(0,\)"),
        (
            lambda: largest_effect([[1.0, np.nan]]),
            "`effects`: expected finite numbers; received NaN or infinity in 1 of 2",
        ),
        (
            lambda: largest_effect([[1.0], [2.0, 3.0]]),
            r"`effects`: expected effects of shape \(N, ...\); received a list",
        ),
    ):
        with pytest.raises(InvalidArgument, match=text):
            call()
