import numpy as np
import pytest

from tfcausal.errors import InvalidArgument
from tfcausal.evaluation.localisation import MaskEnergy


def test_equals_a_loop_over_the_pixels():
    random = np.random.default_rng(0)
    maps = random.normal(size=(3, 5, 4, 3))
    masks = (random.random((3, 5, 4, 1)) > 0.6).astype("float32")
    for value, one_map, mask in zip(MaskEnergy()(maps, masks), maps, masks, strict=True):
        inside = total = 0.0
        for row in range(5):
            for column in range(4):
                positive = max(0.0, sum(one_map[row, column]))
                total += positive
                inside += positive * mask[row, column, 0]
        assert value == pytest.approx(inside / total, abs=1e-12)


def test_a_map_of_the_mask_has_one_and_a_uniform_map_has_the_chance_level():
    masks = np.zeros((1, 4, 4, 1))
    masks[0, 1:3, 1:4] = 1
    energy = MaskEnergy()
    assert energy(masks, masks) == pytest.approx([1.0])
    assert energy(np.ones((1, 4, 4, 1)), masks) == pytest.approx([6 / 16])
    assert energy.chance(masks) == pytest.approx([6 / 16])


def test_a_map_without_positive_saliency_is_undefined():
    masks = np.ones((2, 2, 2, 1))
    maps = np.zeros((2, 2, 2, 3))
    maps[1] = -1
    assert np.isnan(MaskEnergy()(maps, masks)).all()


def test_scale_does_not_matter():
    random = np.random.default_rng(1)
    maps, masks = random.normal(size=(2, 3, 3, 1)), random.integers(0, 2, (2, 3, 3, 1))
    assert MaskEnergy()(maps * 1e-6, masks) == pytest.approx(MaskEnergy()(maps, masks))


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 3, 3, 2), (1, 3, 3, 1), (2, 4, 3, 1)])
def test_masks_that_do_not_go_with_the_maps_are_an_error(shape):
    with pytest.raises(InvalidArgument, match="`masks`: expected masks of shape"):
        MaskEnergy()(np.ones((2, 3, 3, 3)), np.ones(shape))
