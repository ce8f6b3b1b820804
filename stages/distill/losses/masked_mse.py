"""Mean squared error at masked cells (Proteus, arXiv 2407.10366): the student sees the image without these
cells, the target is the teacher's of the whole image."""

from torch import Tensor


def masked_mse(prediction_BPE: Tensor, target_BPE: Tensor, mask_BP: Tensor, cells: float) -> Tensor:
    """(B,): an image's sum over masked cells of their mean over dimensions, divided by `cells`.

    Args:
        prediction_BPE: of the masked image.
        target_BPE: of the whole one.
        mask_BP: bool, true where a cell was masked.
        cells: masked cells per image of the global batch, known from its draws: the mean over that batch is then the
            mean over all of its masked cells, however it is shared out. Where none is masked the loss is 0 (the official
            code gives NaN).
    """
    error_BP = (prediction_BPE.float() - target_BPE.float()).square().mean(-1)
    return (error_BP * mask_BP).sum(1) / (cells if cells > 0 else 1.0)
