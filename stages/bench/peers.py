"""The loops that one would write by hand, for `bench --against`: extraction with a DataLoader, and linear probes.

They are plain on purpose: no resume, no record, no check and no codec. What they share with the stages is the model, the
images and the settings of `compute`.

Shapes: B images of a batch, N samples, D dimensions, S image side in pixels, C classes, H heads.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Samples
from torchvision import transforms as T

from unic_pipe.pipeline.encoders.encoder import precision
from unic_pipe.pipeline.extraction.run import ExtractPass
from unic_pipe.pipeline.process.memory import give_freed_memory_back
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.undecodable import UndecodableImage
from unic_pipe.schemas.features import EncoderDefinition
from unic_pipe.schemas.recipes import Recipe

if TYPE_CHECKING:
    from unic_pipe.pipeline.encoders.encoder import Encoder

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""Learning rates of DINOv2's linear evaluation (Oquab et al., arXiv 2304.07193, appendix B.3), for a batch of 256."""
HEADS_PER_RATE, HEADS_EPOCHS, HEADS_BATCH = 4, 10, 128
"""Each rate has four heads there, one for every way to read the model; all are trained in one pass of ten epochs."""


class Views(Samples[Tensor]):
    """Views of some rows by torchvision, as float32 (3, S, S), normalised."""

    def __init__(self, dataset: Dataset, rows: Sequence[int], recipe: Recipe, encoder: EncoderDefinition) -> None:
        self.dataset, self.rows, self.transform = dataset, rows, plain_transform(recipe, encoder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        try:
            image = Image.open(io.BytesIO(self.dataset.read(self.rows[i]))).convert("RGB")
        except (OSError, SyntaxError, ValueError, UndecodableImage, Image.DecompressionBombError):
            image = Image.new("RGB", (256, 256))  # one that extraction leaves out as well
        view_3SS: Tensor = self.transform(image)
        return view_3SS


def plain_transform(recipe: Recipe, encoder: EncoderDefinition) -> T.Compose:
    """A recipe in the words of torchvision: the same distribution of views, drawn by its own random numbers."""
    size, cubic = encoder.image_size, T.InterpolationMode.BICUBIC
    if recipe.crop == "center":
        steps = [T.Resize(round(size / recipe.center_fraction), cubic), T.CenterCrop(size)]
    else:
        steps = [T.RandomResizedCrop(size, recipe.scale, recipe.ratio, cubic), T.RandomHorizontalFlip(recipe.flip)]
    if recipe.photometric:
        kernel = max(1, round(recipe.blur_kernel * size / recipe.reference_size)) | 1
        steps += [
            T.RandomApply([T.ColorJitter(*recipe.jitter)], recipe.jitter_probability),
            T.RandomGrayscale(recipe.grayscale),
            T.RandomApply([T.GaussianBlur(kernel, recipe.blur_sigma)], recipe.blur_probability),
            T.RandomSolarize(int(255 * recipe.solarize_threshold), recipe.solarize_probability),
        ]
    return T.Compose([*steps, T.ToTensor(), T.Normalize(encoder.mean, encoder.std)])


def plain_extraction(work: ExtractPass, encoders: Sequence[Encoder], device: str, folder: Path, stop: Stop) -> None:
    """Every view of every teacher of a pass: a DataLoader with a worker a core, autocast as configured, as many threads as
    torch takes by itself, features as float16 in an `.npy` file each."""
    rows, cores = [row for b in range(work.blocks) for row in _rows(work.dataset, b)], usable_cores()
    folder.mkdir(exist_ok=True)
    give_freed_memory_back()  # the stage keeps it; such a loop would not
    for (need, _), encoder in zip(work.jobs, encoders, strict=True):
        definition, compute = need.definition, need.definition.compute
        views = Views(work.dataset, rows, definition.recipe, definition.encoder)
        for view in range(max(need.views.values())):
            found: dict[str, list[NDArray[np.float16]]] = {t: [] for t, n in need.views.items() if view < n}
            loader = DataLoader(views, compute.batch, num_workers=cores, pin_memory=device != "cpu")
            with (
                torch_threads(torch.get_num_threads(), device),
                torch.inference_mode(),
                precision(compute, torch.device(device)),
            ):
                for x_B3SS in loader:
                    tokens = encoder(x_B3SS.to(device, non_blocking=True))
                    for token, parts in found.items():
                        parts.append(getattr(tokens, token).half().cpu().numpy())
                    if stop.requested:
                        return
            for token, parts in found.items():
                np.save(folder / f"{need.encoder}-{view}-{token}.npy", np.concatenate(parts))


def _rows(dataset: Dataset, block: int) -> Sequence[int]:
    first, count = dataset.block_range(block)
    return range(first, first + count)


def one_regression(x_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> None:
    """scikit-learn's logistic regression as it is, with one C."""
    from sklearn.linear_model import LogisticRegression

    LogisticRegression(C=1.0, max_iter=1000).fit(x_ND, labels_N)


def many_heads(x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], device: str) -> None:
    """52 linear heads with SGD in one pass over features in memory, as DINOv2 chooses a learning rate."""
    x, y = torch.from_numpy(x_ND).to(device), torch.from_numpy(labels_N).to(device)
    rate_H = torch.tensor(RATES, device=device).repeat_interleave(HEADS_PER_RATE) * HEADS_BATCH / 256
    heads, classes = len(rate_H), int(labels_N.max()) + 1
    weight_HDC = torch.empty(heads, x.shape[1], classes, device=device).normal_(0, 0.01).requires_grad_()
    bias_H1C = torch.zeros(heads, 1, classes, device=device, requires_grad=True)
    # A rate for each head is one optimizer with rate 1 on losses that are scaled: SGD is linear in them.
    optimizer = torch.optim.SGD([weight_HDC, bias_H1C], lr=1.0, momentum=0.9)
    each = max(1, len(x) // HEADS_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, HEADS_EPOCHS * each)
    with torch_threads(usable_cores(), device):
        for _ in range(HEADS_EPOCHS):
            order_N = torch.randperm(len(x), device=device)
            for start in range(0, each * HEADS_BATCH, HEADS_BATCH):
                chosen_B = order_N[start : start + HEADS_BATCH]
                logits_HBC = torch.baddbmm(bias_H1C, x[chosen_B].expand(heads, -1, -1), weight_HDC)
                y_HB = y[chosen_B].expand(heads, -1)
                loss_HB = F.cross_entropy(logits_HBC.transpose(1, 2), y_HB, reduction="none")
                optimizer.zero_grad(set_to_none=True)
                (loss_HB.mean(dim=1) * rate_H).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
