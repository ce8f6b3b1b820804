"""The order of samples: a pure function of the seed, the epoch and the rows, the same for every world size.

An epoch permutes the blocks, concatenates their rows, truncates them to whole batches (another tail each epoch) and
cuts them into C equal streams. Inside a stream a row moves ahead by a random fraction of W blocks: row keys are
`block position + W * uniform`, and rows are taken in the order of their keys. So at most W blocks of a stream are
being read from at any moment, and one new block is needed at a time.

Shapes: N usable rows, B batch, C streams, S = N // B steps.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.draws import Purpose, permutation, uniforms

_CHUNK = 1 << 15
"""Keys that are sorted at a time."""


def epoch_order(
    rows_N: NDArray[np.int64], block_rows: int, *, seed: int, epoch: int, batch: int, streams: int, window: int
) -> NDArray[np.int64]:
    """Row numbers of every batch of one epoch, (S, B) int64; a row appears at most once.

    Columns c * B / C … (c + 1) * B / C - 1 of every batch belong to stream c, so that any world size which divides C
    gives each rank whole streams of the same global batches.

    Args:
        rows_N: usable row numbers, ascending.
        block_rows: rows per block; row r is in block r // block_rows.
        seed: the student's seed.
        epoch: counted from 0.
        batch: global batch size B, a multiple of `streams`.
        streams: C.
        window: W, in blocks.
    """
    if batch % streams:
        raise ValueError(f"batch {batch} is not a multiple of streams {streams}")
    steps = len(rows_N) // batch
    block_N = rows_N // block_rows
    blocks = int(block_N[-1]) + 1 if len(block_N) else 0
    order_SB = np.empty((steps, batch), dtype=np.int64)
    if steps == 0:
        return order_SB
    by_block_N = _by_block(block_N, permutation(seed, Purpose.BLOCK_ORDER, epoch, blocks))
    share = batch // streams
    for stream, used_R in enumerate(rows_N[by_block_N[: steps * batch]].reshape(streams, -1)):
        place_R = np.cumsum(np.diff(used_R // block_rows, prepend=-1) != 0)
        draws_R = uniforms(seed, Purpose.ROW_ORDER, epoch, used_R, 1)[:, 0]
        shuffled_R = used_R[sorted_nearby(place_R + window * draws_R)]
        order_SB[:, stream * share : (stream + 1) * share] = shuffled_R.reshape(steps, share)
    return order_SB


def _by_block(block_N: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the rows, block by block in this order; `block_N` is ascending. A sort would not be linear in rows."""
    count_of = np.bincount(block_N, minlength=len(order))
    first_of = np.cumsum(count_of) - count_of
    counts, firsts = count_of[order], first_of[order]
    return np.repeat(firsts - (np.cumsum(counts) - counts), counts) + np.arange(len(block_N))


def sorted_nearby(keys_R: NDArray[np.float64]) -> NDArray[np.int64]:
    """What `np.argsort(keys_R, kind="stable")` gives, in time linear in R for keys that are almost in order.

    Keys are dealt to buckets by their whole part first, which NumPy's radix sort does for 16-bit numbers; as many
    buckets as fit a processor's cache are then sorted at a time.
    """
    bucket_R = keys_R.astype(np.int64)
    order_R = np.argsort((bucket_R & 0xFFFF).astype(np.uint16), kind="stable")
    if bucket_R.max() > 0xFFFF:
        order_R = order_R[np.argsort((bucket_R[order_R] >> 16).astype(np.uint16), kind="stable")]
    ends = np.cumsum(np.bincount(bucket_R))
    start = 0
    while start < len(order_R):
        # At least one bucket, or as many whole ones as begin within a chunk.
        end = int(ends[np.searchsorted(ends, min(start + _CHUNK, len(order_R)))])
        mine = order_R[start:end]
        order_R[start:end] = mine[np.argsort(keys_R[mine], kind="stable")]
        start = end
    return order_R


def epoch_view(
    seed: int, epoch: int, views: int, patch_views: int | None = None, patch_every: int | None = None
) -> int:
    """The view that an epoch trains on: a fresh seeded permutation for every pass over the views.

    With `patch_every`, every so many epochs (0 is the first) take turns with views 0 to `patch_views` - 1, which carry
    patches, and the epochs between with the others. Without it all views are equal.
    """
    if patch_every is None:
        return _turn(seed, Purpose.VIEW_ORDER, epoch, views)
    assert patch_views is not None, "patch_every needs views without patches"
    before = epoch // patch_every
    if epoch % patch_every == 0:
        return _turn(seed, Purpose.VIEW_ORDER, before, patch_views)
    return patch_views + _turn(seed, Purpose.CLS_VIEW_ORDER, epoch - before - 1, views - patch_views)


def step_size(seed: int, step: int, sizes: Sequence[int]) -> int:
    """The image size of a training step, counted from 0: every so many steps take turns with all sizes."""
    return sizes[_turn(seed, Purpose.IMAGE_SIZE, step, len(sizes))]


def _turn(seed: int, purpose: Purpose, number: int, count: int) -> int:
    """Item `number` of an endless sequence of seeded permutations of 0 … `count` - 1."""
    cycle, place = divmod(number, count)
    return int(permutation(seed, purpose, cycle, count)[place])
