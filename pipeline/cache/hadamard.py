"""Orthogonal matrices whose entries all have the same size, as PHI-S needs them (arXiv 2410.01680).

Legend: D dimensions, p a prime, Q = p + 1 or p.
"""

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_TWO = np.array([[1.0, 1.0], [1.0, -1.0]])
_DIAGONAL = np.array([[1.0, -1.0], [-1.0, -1.0]])
RANDOM_SEED = 0
"""Of the random orthogonal matrix where no Hadamard matrix can be made."""


def spreading(size: int) -> Doubles:
    """(D, D) float64, orthogonal: a Hadamard matrix over sqrt(D), or where `hadamard` has none, a random matrix.

    The random matrix is the Q of a matrix of ±1 drawn with a fixed seed, with signs that make R's diagonal positive.
    It evens variances only on average.
    """
    found_DD = hadamard(size)
    if found_DD is not None:
        return found_DD / math.sqrt(size)
    signs_DD = 2.0 * np.random.default_rng(RANDOM_SEED).integers(0, 2, (size, size)) - 1
    q_DD, r_DD = np.linalg.qr(signs_DD)
    random_DD: Doubles = q_DD * np.where(np.diag(r_DD) < 0, -1.0, 1.0)
    return random_DD


def hadamard(size: int) -> Doubles | None:
    """A (D, D) matrix of ±1 with H Hᵀ = D·I, or None.

    Sylvester's for powers of two; otherwise Sylvester ⊗ Paley with the largest power of two for which Paley's first
    construction has a matrix of the rest, or else his second one. Only prime fields are used, so some sizes that have
    Hadamard matrices (52, 92, 100, 116 …) are not made.
    """
    power = size & -size
    if power == size:
        return _sylvester(size)
    while power:
        rest = _paley_1(size // power)
        rest = _paley_2(size // power) if rest is None else rest
        if rest is not None:
            return _kron(_sylvester(power), rest)
        power //= 2
    return None


def _sylvester(size: int) -> Doubles:
    matrix: Doubles = np.ones((1, 1))
    while len(matrix) < size:
        matrix = _kron(_TWO, matrix)
    return matrix


def _paley_1(size: int) -> Doubles | None:
    """Paley's first construction, of order p + 1 for p ≡ 3 (mod 4)."""
    p = size - 1
    if p % 4 != 3 or not _is_prime(p):
        return None
    matrix_QQ = np.eye(size)
    matrix_QQ[0, 1:], matrix_QQ[1:, 0] = 1.0, -1.0
    matrix_QQ[1:, 1:] += _residues(p)
    return matrix_QQ


def _paley_2(size: int) -> Doubles | None:
    """Paley's second construction, of order 2 (p + 1) for p ≡ 1 (mod 4)."""
    p, odd = size // 2 - 1, size % 2
    if odd or p % 4 != 1 or not _is_prime(p):
        return None
    conference_QQ = np.zeros((p + 1, p + 1))
    conference_QQ[0, 1:] = conference_QQ[1:, 0] = 1.0
    conference_QQ[1:, 1:] = _residues(p)
    return _kron(conference_QQ, _TWO) + _kron(np.eye(p + 1), _DIAGONAL)


def _residues(p: int) -> Doubles:
    """(p, p): 1 where row - column is a square modulo p, -1 where it is none, 0 on the diagonal."""
    character = np.full(p, -1.0)
    character[np.arange(p) ** 2 % p] = 1.0
    character[0] = 0.0
    residues_pp: Doubles = character[np.subtract.outer(np.arange(p), np.arange(p)) % p]
    return residues_pp


def _kron(a: Doubles, b: Doubles) -> Doubles:
    return np.kron(a, b).astype(np.float64)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
