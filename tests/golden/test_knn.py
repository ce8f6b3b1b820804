import numpy as np
import pytest

from unic_pipe.stages.evaluate.knn import knn_probe


@pytest.mark.parametrize("k", [1, 10, 20])
def test_top1_and_top5_equal_the_official_ones(golden, k):
    arrays = np.load(golden / "unic.npz")
    train_x, train_y, test_x, test_y = (arrays[f"knn/{name}"] for name in ("train_x", "train_y", "test_x", "test_y"))
    scores, _ = knn_probe(train_x, train_y, test_x, test_y, [k])
    ours = np.array([scores[f"top1_k{k}"], scores[f"top5_k{k}"]]) * 100
    np.testing.assert_allclose(ours, arrays[f"knn/top1_top5_k{k}"], rtol=1e-5, atol=1e-6)
