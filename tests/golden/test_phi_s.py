"""RADIO's numbers for PHI-S: an eigenvector's sign is arbitrary, so most is compared by what does not depend on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from unic_pipe.pipeline.cache.covariance import Comoments
from unic_pipe.pipeline.cache.hadamard import hadamard, spreading
from unic_pipe.pipeline.cache.phi_s import PhiS, phi_s, rotated
from unic_pipe.schemas.errors import UserError

CASES = ("pow2", "paley1", "paley1b", "paley2", "random", "lowrank")


def moments(x_ND: np.ndarray) -> Comoments:
    """In pieces of unequal sizes, as blocks of a cache come."""
    found = Comoments(x_ND.shape[1])
    for piece_MD in np.split(x_ND, [0, 1, len(x_ND) // 3, len(x_ND) // 2]):
        found.add(piece_MD)
    return found


def inverse_of(ours):
    """What turns targets into features less their mean: x - mean = inverse @ y."""
    return ours.matrix_DD.T / ours.phi**2


@pytest.fixture(scope="module", params=CASES)
def case(request, recipes):
    """The numbers of one case, and what we make of its features."""
    numbers = recipes("phi_s")
    assert set(json.loads(str(numbers["options"]))["cases"]) == set(CASES)
    mine = {k.split("/", 1)[1]: v for k, v in numbers.items() if k.startswith(f"{request.param}/")}
    found = moments(mine["x"])
    return request.param, mine, found, phi_s(found.mean_D, found.sum_DD / (found.count - 1))


def test_invariants(case):
    name, numbers, found, ours = case
    np.testing.assert_allclose(found.mean_D, numbers["mean"], rtol=1e-5, atol=1e-6)
    assert ours.phi == pytest.approx(float(numbers["phi"]), rel=1e-5)
    np.testing.assert_allclose(ours.matrix_DD.T @ ours.matrix_DD / ours.phi**2, np.eye(len(ours.mean_D)), atol=1e-12)
    y_ND = ours(numbers["x"])
    variance_D = y_ND.var(axis=0, ddof=1)
    np.testing.assert_allclose(variance_D.mean() if name == "random" else variance_D, 1.0, rtol=1e-10)
    np.testing.assert_allclose(pdist(y_ND[:40]), ours.phi * pdist(numbers["x"][:40].astype(np.float64)), rtol=1e-10)
    np.testing.assert_allclose(y_ND @ inverse_of(ours).T + ours.mean_D, numbers["x"], atol=1e-9)


def test_the_covariance_of_the_targets(case):
    """It needs ascending eigenvalues and H; ours is RADIO's, except that each has its own random matrix."""
    name, numbers, _, ours = case
    spread_DD = spreading(len(ours.mean_D))
    np.testing.assert_allclose(spread_DD @ spread_DD.T, np.eye(len(spread_DD)), atol=1e-12)
    if name == "random":
        assert hadamard(len(spread_DD)) is None
    else:
        np.testing.assert_allclose(spread_DD, numbers["hadamard"], atol=1e-6)
        found_DD = np.cov(ours(numbers["x"]).T)
        np.testing.assert_allclose(found_DD, numbers["y_cov"], atol=1e-5 * np.abs(numbers["y_cov"]).max())


def test_with_the_official_eigenvectors(case):
    _, numbers, found, _ = case
    e_D, u_DD, h_DD = (numbers[key].astype(np.float64) for key in ("eigvals_unclipped", "eigvecs", "hadamard"))
    ours: PhiS = rotated(found.mean_D, e_D, u_DD, h_DD)
    np.testing.assert_allclose(ours.matrix_DD, numbers["matrix"], atol=2e-5 * np.abs(numbers["matrix"]).max())
    np.testing.assert_allclose(inverse_of(ours), numbers["inverse"], atol=2e-5 * np.abs(numbers["inverse"]).max())
    close = {"rtol": 0, "atol": 1e-5 * np.abs(numbers["y"]).max()}
    np.testing.assert_allclose(ours(numbers["x"][: len(numbers["y"])]), numbers["y"], **close)
    np.testing.assert_allclose(np.cov(ours(numbers["x"]).T), numbers["y_cov"], **close)
    as_map = np.moveaxis(ours(np.moveaxis(numbers["map_in"], 1, -1)), -1, 1)
    np.testing.assert_allclose(as_map, numbers["map_out"], **close)
    flat = numbers["x"][: numbers["y_3d"].shape[0] * numbers["y_3d"].shape[1]].reshape(numbers["y_3d"].shape)
    np.testing.assert_allclose(ours(flat), numbers["y_3d"], **close)


@pytest.mark.parametrize(
    "size", [1, 2, 4, 12, 20, 24, 28, 36, 44, 48, 60, 68, 72, 192, 384, 768, 1024, 1152, 1408, 1536]
)
def test_hadamard_matrices(size):
    matrix = hadamard(size)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [3, 5, 6, 30, 52, 92, 100, 116])
def test_sizes_without_one_are_rotated_at_random(size):
    assert hadamard(size) is None
    np.testing.assert_allclose(spreading(size) @ spreading(size).T, np.eye(size), atol=1e-12)
    np.testing.assert_array_equal(spreading(size), spreading(size))


def test_equal_tokens_have_no_scale():
    with pytest.raises(UserError, match="All tokens are the same"):
        phi_s(np.ones(4), np.zeros((4, 4)))
