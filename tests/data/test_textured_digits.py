import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from tfcausal.data import textures
from tfcausal.data.sources import textured_digits as source
from tfcausal.data.sources.textured_digits import textured_digits
from tfcausal.data.textures import TEXTURES, read_textures
from tfcausal.errors import DataError, InvalidArgument

SIZES = {"train_size": 200, "validation_size": 100, "test_size": 150}


@pytest.fixture(scope="module")
def digits():
    return textured_digits()


@pytest.fixture(scope="module")
def arrays(digits):
    return {split: image_set.read(np.arange(len(image_set))) for split, image_set in digits.splits.items()}


def digit_indices(image_set):
    return [int(name.rpartition("_")[2]) for name in image_set.names]


def test_splits_have_the_promised_form(digits, arrays):
    assert {split: len(image_set) for split, image_set in digits.splits.items()} == {
        "train": 1100,
        "validation": 200,
        "test": 497,
        "test_shuffled": 497,
    }
    for split, (images, masks) in arrays.items():
        image_set = digits.splits[split]
        assert images.dtype == masks.dtype == np.float32
        assert images.shape == (len(image_set), *image_set.image_shape) == (len(image_set), 48, 48, 3)
        assert images.min() >= 0.0
        assert images.max() <= 1.0
        assert set(np.unique(masks)) == {0.0, 1.0}
        assert masks.sum(axis=(1, 2, 3)).min() >= 30
        assert image_set.has_mask.all()
        counts = np.bincount(image_set.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.15 * counts.mean()


def test_splits_share_no_digit(digits):
    used = {split: set(digit_indices(image_set)) for split, image_set in digits.splits.items()}
    assert used["test"] == used["test_shuffled"]
    assert len(used["train"] | used["validation"] | used["test"]) == 1797
    assert len({name for image_set in digits.splits.values() for name in image_set.names}) == 1797 + 497


def test_masks_show_the_digit_that_the_name_and_the_label_tell(digits, arrays):
    image_set, (_, masks) = digits.splits["validation"], arrays["validation"]
    reference = load_digits()
    own, wrong = [], []
    for mask, index, label in zip(masks[..., 0], digit_indices(image_set), image_set.labels, strict=True):
        assert reference.target[index] == label
        for scores, candidate in ((own, index), (wrong, (index + 1) % 1797)):
            ink = reference.images[candidate] > 7
            scores.append(intersection_over_union(crop(mask > 0), crop(ink)))
    assert np.mean(own) > 0.7
    assert np.quantile(own, 0.02) > 0.5
    assert np.mean(wrong) < 0.5


def crop(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def intersection_over_union(first, second):
    first, second = (
        np.asarray(Image.fromarray(mask.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR)) > 0.5
        for mask in (first, second)
    )
    return (first & second).sum() / (first | second).sum()


def test_masks_are_where_drawing_changed_the_background(arrays):
    # The same draw in another contrast: what changes is the digit, and it changes in proportion to its coverage.
    images, masks = arrays["train"]
    fainter, same_masks = textured_digits(contrast=0.25).splits["train"].read(np.arange(1100))
    np.testing.assert_array_equal(masks, same_masks)
    change = np.abs(images - fainter).mean(axis=3, keepdims=True)
    coverage = change / change.max(axis=(1, 2, 3), keepdims=True)
    certain = np.abs(coverage - 0.5) > 0.05  # pixels have 256 levels
    assert certain.mean() > 0.95
    np.testing.assert_array_equal((coverage > 0.5)[certain], (masks > 0)[certain])


def test_both_test_splits_show_the_same_digits_on_different_backgrounds(digits, arrays):
    (images, masks), (shuffled, shuffled_masks) = arrays["test"], arrays["test_shuffled"]
    np.testing.assert_array_equal(masks, shuffled_masks)
    np.testing.assert_array_equal(digits.splits["test"].labels, digits.splits["test_shuffled"].labels)
    inside, outside = masks[..., 0] > 0, masks[..., 0] == 0
    difference = np.abs(images - shuffled).mean(axis=3)
    assert np.quantile(difference[inside], 0.6) == 0.0
    assert np.mean(difference[outside] > 0.01) > 0.8


def test_contexts_agree_as_often_as_asked_and_not_at_all_when_shuffled(digits):
    for split, image_set in digits.splits.items():
        np.testing.assert_array_equal(image_set.context_agrees, image_set.contexts == image_set.labels)
        share, n = (0.1 if split == "test_shuffled" else 0.9), len(image_set)
        assert abs(image_set.context_agrees.mean() - share) < 3.5 * np.sqrt(share * (1 - share) / n)
    table = np.zeros((10, 10), dtype=int)
    np.add.at(table, (digits.splits["test_shuffled"].labels, digits.splits["test_shuffled"].contexts), 1)
    assert np.all(table.max(axis=1) - table.min(axis=1) <= 1)


def test_backgrounds_are_the_texture_of_the_context(monkeypatch):
    def flat(texture, channels):
        level = TEXTURES.index(texture) / 10
        return np.full((texture.rows[1], texture.columns[1], channels), level)

    monkeypatch.setattr(textures, "_photograph", flat)
    for image_set in textured_digits(**SIZES).splits.values():
        images, masks = image_set.read(np.arange(len(image_set)))
        background = np.median(np.where(masks > 0, np.nan, images)[:, :2].reshape(len(images), -1), axis=1)
        known = np.isfinite(background)
        levels = np.round((background[known] - 0.25) / 0.5 * 10).astype(int)
        paper = TEXTURES.index(next(texture for texture in TEXTURES if texture.even_lighting))
        keep = image_set.contexts[known] != paper  # even lighting makes every flat photograph paper white
        assert keep.sum() > 50
        np.testing.assert_array_equal(levels[keep], image_set.contexts[known][keep])


def test_splits_share_no_pixel_of_a_photograph(monkeypatch):
    # Every pixel of the photographs tells its place along the axis by which they are divided.
    def ramp(texture, channels):
        axis = texture.split_axis
        size = (texture.rows[1], texture.columns[1])
        place = np.ones(size) if texture.even_lighting else np.indices(size)[axis] / size[axis]
        return np.repeat(place[..., None], channels, axis=2)

    monkeypatch.setattr(textures, "_photograph", ramp)
    places = {}
    for split, image_set in textured_digits(contrast=0.5).splits.items():
        images, masks = image_set.read(np.arange(len(image_set)))
        for k, texture in enumerate(TEXTURES):
            if not texture.even_lighting:
                chosen = image_set.contexts == k
                away = ~binary_dilation(masks[chosen][..., 0] > 0, np.ones((1, 3, 3)), iterations=8)
                seen = (images[chosen][..., 0][away] - 0.25) / 0.5
                places[split, texture.name] = (seen.min(), seen.max())
    for texture in TEXTURES:
        if not texture.even_lighting:
            resolution = 1 / 255
            for earlier, later in (("train", "validation"), ("validation", "test"), ("validation", "test_shuffled")):
                assert places[earlier, texture.name][1] <= places[later, texture.name][0] + resolution
            assert places["train", texture.name][1] - places["train", texture.name][0] > 0.15


def test_regions_lie_inside_the_photographs_and_do_not_overlap():
    for texture in TEXTURES:
        photograph = textures._photograph(texture, 1)
        uses = np.zeros(photograph.shape[:2], dtype=int)
        for split in ("train", "validation", "test"):
            rows, columns = texture.region(split)
            assert uses[rows, columns].shape == (rows.stop - rows.start, columns.stop - columns.start)
            uses[rows, columns] += 1
        assert uses.max() == 1


def test_textures_are_in_range_and_large_enough():
    for channels in (1, 3):
        for regions in read_textures(channels).values():
            for texture, region in zip(TEXTURES, regions, strict=True):
                assert region.shape[2] == channels
                assert min(region.shape[:2]) >= texture.patch_limit() >= 96
                assert region.min() >= 0.25 - 1e-6
                assert region.max() <= 0.75 + 1e-6
                assert region.std() > 0.003


def test_digits_stand_out_from_every_background_at_the_default_contrast(arrays):
    for images, masks in arrays.values():
        grey = images.mean(axis=3) - 0.5
        away = ~binary_dilation(masks[..., 0] > 0, np.ones((1, 3, 3)), iterations=8)
        assert np.abs(grey[away]).max() <= 0.26
        tones = np.array(
            [tone[np.abs(tone).argmax()] for tone in (g[m > 0] for g, m in zip(grey, masks[..., 0], strict=True))]
        )
        assert np.abs(tones).min() >= 0.39
        assert 0.4 < (tones > 0).mean() < 0.6


def test_tone_and_place_of_a_digit_do_not_tell_its_class(digits, arrays):
    images, masks = arrays["train"]
    colours = np.array([np.median(image[mask[..., 0] > 0], axis=0) for image, mask in zip(images, masks, strict=True)])
    places = []
    for mask in masks[..., 0]:
        rows, columns = np.nonzero(mask)
        places.append([rows.min() + rows.max(), columns.min() + columns.max()])
    features = np.concatenate([colours, np.array(places) / 96], axis=1)
    scores = cross_val_score(LogisticRegression(max_iter=500), features, digits.splits["train"].labels, cv=4)
    assert scores.mean() < 0.16


@pytest.fixture(scope="module")
def balanced():
    return textured_digits(**SIZES, balanced_size=300)


def test_a_balanced_split_leaves_training_and_test_as_they_are(balanced):
    without = textured_digits(**SIZES)
    assert list(balanced.splits) == [*without.splits, "balanced"]
    for split in ("train", "test", "test_shuffled"):
        one, other = without.splits[split], balanced.splits[split]
        assert one.names == other.names
        everything = np.arange(len(one))
        for before, after in zip(one.read(everything), other.read(everything), strict=True):
            np.testing.assert_array_equal(before, after)
    assert without.splits["validation"].names == balanced.splits["validation"].names


def test_balanced_digits_are_in_no_other_split_and_every_digit_is_on_every_texture(balanced):
    image_set = balanced.splits["balanced"]
    others = {index for split in ("train", "validation", "test") for index in digit_indices(balanced.splits[split])}
    assert len(others) == 450
    assert len(set(digit_indices(image_set)) - others) == 300
    table = np.zeros((10, 10), dtype=int)
    np.add.at(table, (image_set.labels, image_set.contexts), 1)
    assert table.min() >= 2
    assert np.all(table.max(axis=1) - table.min(axis=1) <= 1)
    np.testing.assert_array_equal(image_set.context_agrees, image_set.contexts == image_set.labels)
    images, masks = image_set.read(np.arange(300))
    assert images.shape == (300, 48, 48, 3)
    assert masks.sum(axis=(1, 2, 3)).min() >= 30


def test_balanced_and_validation_share_no_pixel_of_a_photograph(monkeypatch):
    # Every pixel of the part that they share tells its place along the longer side; even lighting would change that.
    def ramps(channels):
        regions = {}
        for split, parts in read_textures(channels).items():
            regions[split] = []
            for part in parts:
                height, width = part.shape[:2]
                rows, columns = np.indices((height, width))
                place = rows / height if height >= width else columns / width
                place = place if split == "validation" else np.full((height, width), 2.0)
                regions[split].append(np.repeat(place[..., None], channels, axis=2).astype(np.float32))
        return regions

    monkeypatch.setattr(source, "read_textures", ramps)
    splits = textured_digits(**SIZES, balanced_size=200, contrast=0.01, digit_width=(8, 8)).splits
    places = {}
    for split in ("validation", "balanced"):
        images, masks = splits[split].read(np.arange(len(splits[split])))
        places[split] = [
            images[splits[split].contexts == k][masks[splits[split].contexts == k][..., 0] == 0] for k in range(10)
        ]
    for first, second in zip(places["validation"], places["balanced"], strict=True):
        assert first.max() < 0.515  # a digit's edge is mid-grey to within its contrast
        assert second.min() > 0.485
        assert np.median(first) < 0.4
        assert np.median(second) > 0.6


def test_reading_depends_on_the_seed_alone_and_not_on_the_batch(digits, arrays):
    again = textured_digits().splits["test_shuffled"]
    images, masks = again.read(np.array([3, 5, 7]))
    np.testing.assert_array_equal(images, arrays["test_shuffled"][0][[3, 5, 7]])
    np.testing.assert_array_equal(masks, arrays["test_shuffled"][1][[3, 5, 7]])
    assert again.names == digits.splits["test_shuffled"].names
    np.testing.assert_array_equal(again.read(np.array([5]))[0][0], images[1])
    other = textured_digits(seed=1).splits["train"]
    assert set(other.names) != set(digits.splits["train"].names)
    assert np.any(other.read(np.arange(3))[0] != arrays["train"][0][:3])


def test_grey_images_of_another_size():
    image_set = textured_digits(image_size=64, digit_width=(20, 64), channels=1, **SIZES).splits["train"]
    images, masks = image_set.read(np.arange(5))
    assert images.shape == masks.shape == (5, 64, 64, 1)
    assert image_set.image_shape == (64, 64, 1)


def test_context_strength_is_obeyed():
    assert textured_digits(context_strength=1.0, **SIZES).splits["train"].context_agrees.all()
    assert not textured_digits(context_strength=0.0, **SIZES).splits["test"].context_agrees.any()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"context_strength": 1.5}, "`context_strength`: expected a probability"),
        ({"train_size": 1200}, r"at most 1797 digit images; received 1897 \(1200 \+ 200 \+ 497\)"),
        ({"test_size": 5}, "`test_size`: expected 10 or more"),
        ({"digit_width": (28, 49)}, r"`digit_width`: expected .* from 8 to image_size \(48\)"),
        ({"digit_width": (30, 20)}, "`digit_width`"),
        ({"digit_width": (4, 20)}, "`digit_width`"),
        ({"image_size": 400}, "`image_size`: expected 8 to 120 pixels"),
        ({"contrast": 0.0}, "`contrast`"),
        ({"contrast": 0.6}, "`contrast`"),
        ({"channels": 4}, "`channels`: expected 1"),
        ({"seed": -1}, "`seed`"),
        ({"balanced_size": 5}, "`balanced_size`: expected 10 or more"),
        ({"balanced_size": 10}, r"\+ balanced_size`: expected at most 1797 .* 1807 \(1100 \+ 200 \+ 497 \+ 10\)"),
        ({**SIZES, "balanced_size": 100, "image_size": 69}, "expected 8 to 68 pixels.* with a split `balanced`"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(InvalidArgument, match=match):
        textured_digits(**arguments)


def test_a_scikit_image_without_its_photographs(monkeypatch):
    absent = dataclasses.replace(TEXTURES[0], file="absent.png")
    monkeypatch.setattr(textures, "TEXTURES", (absent, *TEXTURES[1:]))
    with pytest.raises(DataError, match=r"skimage/data/absent\.png.*no such file\. Install scikit-image"):
        textured_digits(**SIZES)
