"""Student, ladder and loss as one module, and the optimizer's step.

Shapes: B images, S image side in pixels, T teachers, E teacher dimension, P patch tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unic_pipe.pipeline.samples.mixtures import parts_of
from unic_pipe.pipeline.samples.order import step_size
from unic_pipe.pipeline.students.build import build_student
from unic_pipe.pipeline.students.heads.heads import Heads, Predictor, build_predictor, inputs
from unic_pipe.pipeline.students.student import RungOutputs, Student
from unic_pipe.pipeline.views.render import normalize
from unic_pipe.schemas.config import StudentConfig, TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import StatisticsDocument
from unic_pipe.schemas.losses import KINDS, MOVING
from unic_pipe.schemas.students import TargetStatistics, TeacherInput
from unic_pipe.stages.distill.data.batches import Batch
from unic_pipe.stages.distill.data.masks import MASKED_CELLS, masked_cells
from unic_pipe.stages.distill.data.noise import noisy
from unic_pipe.stages.distill.data.queues import queued_batches
from unic_pipe.stages.distill.data.target_statistics import Measured, needed
from unic_pipe.stages.distill.data.targets import CommonGrid, Pair, Standard, Targets, rows_with, standard_of
from unic_pipe.stages.distill.losses.similarity import pushed
from unic_pipe.stages.distill.model.balance import Balance
from unic_pipe.stages.distill.model.batch_standardization import BatchStandardization
from unic_pipe.stages.distill.model.loss import Masked, TeacherLosses, entries, kept, teacher_losses, total_loss
from unic_pipe.stages.distill.model.standardization import RunningStandardization
from unic_pipe.stages.distill.parallel.batch_norm import batch_norms

ASSUMED_CLASSES = 1000
"""Of a classifier that nobody has read yet."""


class Distiller(nn.Module):
    """The student with its ladder, and the loss of a batch against all teachers."""

    def __init__(
        self,
        config: StudentConfig,
        teachers: tuple[TeacherInput, ...],
        device: torch.device,
        statistics: Mapping[str, StatisticsDocument] | None = None,
        targets: Mapping[str, Measured] | None = None,
    ) -> None:
        """Build both at their seeded initialisation and move them to `device`.

        `statistics`: by teacher, for `standardize: exact`. `targets`: by teacher, where the loss needs more than these;
        without, as where only the time is measured, nothing is rotated, dispersions are 1, class means and classifiers 0.

        Raises:
            UserError: the configuration does not make a student or a ladder.
        """
        super().__init__()
        self.config, self.device = config, device
        self.student = build_student(config)
        sizes = _target_sizes(config, teachers)
        self.ladder = build_ladder(config, sizes, self.student)
        self.teachers = tuple(t.name for t in teachers)
        largest, (rows, columns) = max(config.image_sizes or (config.image_size,)), self.student.grid
        self.cells = rows * columns * largest**2 // config.image_size**2 if config.loss.needs_masks else 0
        self.grids = {t.name: t.grid for t in teachers}
        self._common: dict[tuple[str, tuple[int, int]], CommonGrid] = {}
        self.standards, self.dispersions = dict[Pair, Standard](), dict[Pair, float]()
        self.sizes = {(teacher, token): size for token, mine in sizes.items() for teacher, size in mine.items()}
        self.centers, self.classifiers, self.queues = dict[Pair, Tensor](), dict[Pair, Tensor](), dict[Pair, Tensor]()
        for pair, size in self.sizes.items():
            self._prepare(pair, size, (statistics or {}).get(pair[0]), (targets or {}).get(pair[0]))
        moving = {token: mine for token, mine in sizes.items() if config.loss.normaliser(token) in MOVING}
        kinds = {config.loss.normaliser(token) for token in moving}
        self.running = None
        if moving:
            self.running = (BatchStandardization if "batch" in kinds else RunningStandardization)(moving, device)
        self.to(device).train()

    def _prepare(self, pair: Pair, size: int, exact: StatisticsDocument | None, measured: Measured | None) -> None:
        """Keep how a teacher's targets of one type, of so many dimensions, are normalised, and what its terms are given."""
        teacher, token = pair
        loss, found = self.config.loss, measured or Measured(TargetStatistics(rows={}), {})
        wanted, how = needed(loss, teacher), loss.normaliser(token)
        self.standards[pair] = standard = standard_of(exact, token, how, found.rotations.get(token))
        self.dispersions[pair] = found.document.dispersions.get(token, 1.0)
        if token in wanted.class_means:
            means_CD = found.class_means.get(token, np.zeros((1, size)))
            self.centers[pair] = torch.from_numpy(standard.of(means_CD).astype(np.float32)).to(self.device)
        if token in wanted.classifiers:
            weights_CD = found.classifiers.get(token, np.zeros((ASSUMED_CLASSES, size + 1)))
            self.classifiers[pair] = torch.from_numpy(standard.classifier(weights_CD).astype(np.float32)).to(
                self.device
            )
        if token in wanted.queues:
            batch = self.config.optimizer.batch
            self.queues[pair] = torch.zeros(queued_batches(batch) * batch, size, device=self.device)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; frozen BatchNorm layers stay in the latter."""
        super().train(mode)
        for layer in batch_norms(self.student) if self.config.batch_norm == "frozen" else ():
            layer.eval()
        return self

    def forward(
        self,
        batch: Batch,
        training: bool = True,
        count: float | None = None,
        frozen: bool = False,
        balance: Balance | None = None,
    ) -> tuple[TeacherLosses, Tensor, Tensor]:
        """Losses per image and teacher, which teachers each image kept (B, T), and the scalar to minimise.

        Without `training` no branch and no teacher is dropped, and a running standardization learns nothing. `count`:
        of a share of a batch, see `loss_weights`. `frozen`: the student, in evaluation mode, gets no gradients (not zeros,
        by which weights would still decay). `balance` is shown targets and tokens. The batch must be on the model's device.
        """
        config = self.config
        drop_path_BU = batch.drop_path_BU[:, : len(self.student.drop_paths)] if training and not frozen else None
        size = config.image_size
        if training and config.image_sizes is not None:
            size = step_size(config.draws_seed, batch.plan.step, config.image_sizes)
        images_B3SS = batch.images[size]
        if training and config.noise:
            assert batch.noise_B3 is not None, "drawn where a student has noise"
            images_B3SS = noisy(images_B3SS, batch.noise_B3, config.noise)
        x_B3SS = normalize(images_B3SS, config.mean, config.std)
        self._queue(batch)

        def look() -> RungOutputs:
            outputs = self._outputs(x_B3SS, drop_path_BU, frozen)
            if balance is not None:
                balance.see_tokens([every[-1] for every in outputs])
            return outputs

        with self.autocast():
            outputs = look()
            predictions = self.ladder(*outputs)
            grid = self.student.grid_of(outputs)
            known = self._known(batch)
            if training and self.cells and batch.plan.patches:
                self._add_masked(known, batch, grid, look)
        targets = self._targets(batch.targets, training, grid, balance)
        for teacher, prediction in predictions.get("patch", {}).items():
            predictions["patch"][teacher] = self.common(teacher, grid).prediction(prediction)
        losses = teacher_losses(predictions, targets, config.loss, known, self._rows(batch.targets))
        keep_BT = self._kept(batch, losses, training)
        divisor = entries(config.loss, keep_BT) if count is None else count
        return losses, keep_BT, total_loss(losses.loss_BT, keep_BT, divisor)

    def _queue(self, batch: Batch) -> None:
        """Push the global batches that enter the queues with this one."""
        for pair, queue_QE in self.queues.items():
            if batch.queued and batch.plan.anew:
                queue_QE = torch.zeros_like(queue_QE)
            for targets in batch.queued:
                queue_QE = pushed(queue_QE, targets[pair].decode(self.standards[pair].name))
            self.queues[pair] = queue_QE

    def _outputs(self, x_B3SS: Tensor, drop_path_BU: Tensor | None, frozen: bool) -> RungOutputs:
        """What the student gives its heads."""
        with torch.no_grad() if frozen else nullcontext():
            return inputs(self.student, self.ladder, self.student(x_B3SS, self.ladder.rungs.blocks, drop_path_BU))

    def _add_masked(
        self, known: dict[Pair, dict[str, Any]], batch: Batch, grid: tuple[int, int], look: Callable[[], RungOutputs]
    ) -> None:
        """What the student says of images of which it does not see all patches; `look` shows them to it."""
        assert isinstance(self.ladder, Heads), "a configuration with a ladder is refused"
        assert batch.mask_BL is not None, "drawn where a student has cells"
        mask_BP = masked_cells(batch.mask_BL, grid[0] * grid[1])
        cells = batch.plan.masked * round(MASKED_CELLS * mask_BP.shape[1]) / self.config.optimizer.batch
        with self.student.masked(mask_BP, self.ladder.mask_token):
            outputs = look()
        for teacher, prediction in self.ladder.of_masked(outputs.patch_LBPD).items():
            known[teacher, "patch"]["masked"] = Masked(prediction.float(), mask_BP, cells)

    def _kept(self, batch: Batch, losses: TeacherLosses, training: bool) -> Tensor:
        """Which teachers the images of a batch learn from, (B, T); without training, from all that they have."""
        loss, columns = self.config.loss, [self.teachers.index(teacher) for teacher in losses.teachers]
        if not training:
            present_BT = torch.ones_like(losses.loss_BT)
            return present_BT if losses.there_BT is None else present_BT * losses.there_BT
        own_BT = None
        if loss.balance == "own_data":
            mine_ST = [[float(t in loss.own[dataset]) for t in losses.teachers] for dataset in self.config.datasets]
            own_BT = losses.loss_BT.new_tensor(mine_ST)[torch.from_numpy(parts_of(batch.plan.rows_B)).to(self.device)]
        return kept(loss, losses.loss_BT, batch.drop_teacher_BT[:, columns], own_BT, losses.there_BT)

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that are compiled, and shared out over processes, one by one."""
        return [*self.student.parts, *self.ladder.parts]

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile the parts one by one: equal blocks are compiled once, and sharing out weights still works."""
        for part in self.parts:
            part.compile(backend=backend)

    def _targets(
        self, raw: Targets, training: bool, grid: tuple[int, int], balance: Balance | None = None
    ) -> Mapping[TokenType, Mapping[str, Tensor]]:
        """The targets of each token type, patches on a grid; a view without patches has none of them."""
        targets: dict[TokenType, dict[str, Tensor]] = {}
        for (teacher, token), standard in self.standards.items():
            if (teacher, token) not in raw:
                continue
            target = raw[teacher, token].decode(standard.name)
            if self.running is not None and self.config.loss.normaliser(token) in MOVING:
                target = self.running(teacher, token, target, learn=training)
            if balance is not None:
                balance.see_targets(teacher, token, target)
            targets.setdefault(token, {})[teacher] = (
                self.common(teacher, grid).target(target) if token == "patch" else target
            )
        return targets

    def common(self, teacher: str, grid: tuple[int, int]) -> CommonGrid:
        """Where a teacher's patch tokens are compared with a student's on a grid, which follows the images' size; kept."""
        if (teacher, grid) not in self._common:
            self._common[teacher, grid] = CommonGrid(self.grids[teacher], grid, self.config.loss.grid, self.device)
        return self._common[teacher, grid]

    def _known(self, batch: Batch) -> dict[Pair, dict[str, Any]]:
        """What kinds of terms are given of a batch's teachers beside targets."""
        known: dict[Pair, dict[str, Any]] = {
            pair: {"dispersion": dispersion} for pair, dispersion in self.dispersions.items()
        }
        for pair, centers_CD in self.centers.items():
            assert batch.classes_B is not None, "read where a loss is about classes"
            known[pair]["centers"] = centers_CD[batch.classes_B]
        for pair, queue_QE in self.queues.items():
            known[pair]["queue"] = queue_QE
        for pair, weights_CD in self.classifiers.items():
            known[pair]["logits"] = partial(F.linear, weight=weights_CD[:, :-1], bias=weights_CD[:, -1])
        return known

    def _rows(self, raw: Targets) -> dict[str, Tensor]:
        """By teacher that has targets of a part of the rows alone, of which."""
        found: dict[str, Tensor] = {}
        for teacher in self.teachers:
            mine = [raw[pair] for pair in self.standards if pair[0] == teacher and pair in raw]
            rows_M = rows_with(mine[0]) if mine else torch.empty(0, dtype=torch.int64, device=self.device)
            if rows_M is not None:
                found[teacher] = rows_M
        return found

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which student and ladder run."""
        # Its cache of cast weights is one for all threads, and is emptied when any of them is done with a region of its own: the
        # gradients of a weight that is used twice would depend on when.
        enabled = self.config.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def _target_sizes(config: StudentConfig, teachers: tuple[TeacherInput, ...]) -> dict[TokenType, dict[str, int]]:
    """For each token type that is trained on, the dimension of every teacher with a term of it."""
    loss = config.loss
    return {
        token: {
            t.name: t.cls_dim if token == "cls" else t.patch_dim for t in teachers if token in loss.terms_of(t.name)
        }
        for token in loss.trained
    }


def build_ladder(config: StudentConfig, sizes: Mapping[TokenType, Mapping[str, int]], student: Student) -> Predictor:
    """The ladder (or other heads) of a student at its seeded initialisation, on the CPU.

    `sizes`: by token type, every teacher's dimension.

    Raises:
        UserError: there is nothing to minimise, `ladder.blocks` or the heads do not fit, or the student's patches cannot be
            masked.
    """
    if config.loss.terms is None and config.loss.cosine == config.loss.smooth_l1 == 0:
        raise UserError(
            "loss.cosine and loss.smooth_l1 are both 0: there is nothing to minimise.",
            "Set one of students.NAME.loss.cosine and students.NAME.loss.smooth_l1 above 0.",
        )
    masked = {
        teacher: size
        for teacher, size in sizes.get("patch", {}).items()
        if any(KINDS[kind].needs == "masked" for kind in config.loss.terms_of(teacher).get("patch", {}))
    }
    if config.loss.needs_masks:
        student.require_patches()
    with torch.random.fork_rng(devices=[]):
        # Not the student's own numbers again; any fixed function of the seed will do.
        torch.manual_seed(config.seed + 0x1ADDE5)
        return build_predictor(config.ladder, sizes, student.depth, student.widths, masked)
