import pytest

from tfcausal.scale.ray_engine import gpu_share


@pytest.mark.parametrize("gpus", range(1, 9))
@pytest.mark.parametrize("workers", range(1, 20))
def test_all_workers_find_a_place_on_some_gpu(gpus, workers):
    share = gpu_share(gpus, workers)
    assert 0 < share <= 1
    assert int(1 / share + 1e-9) * gpus >= workers
    assert share == 1 or (int(1 / share + 1e-9) - 1) * gpus < workers  # and have no less than they could


def test_without_gpus_none_is_taken():
    assert gpu_share(0, 3) == 0
