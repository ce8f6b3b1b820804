"""What is measured of targets when training starts: the rotation of PHI-S, the spread of directions; and their custody."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import STUDENT, TEACHERS, VIEWS, World, student_folder

from unic_pipe import load_student
from unic_pipe.pipeline.cache.statistics import merge_statistics
from unic_pipe.pipeline.workspace.integrity import student_findings
from unic_pipe.schemas.config import LadderConfig, LossConfig, StudentConfig
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.students import StudentManifest
from unic_pipe.stages.distill.data.rows import Rows, usable_rows
from unic_pipe.stages.distill.data.target_statistics import measure, needed
from unic_pipe.stages.distill.data.targets import BlockWindow, TargetReader, standard_of

LOSS = LossConfig.model_validate_json(
    json.dumps(
        {
            "terms": [
                {"token": "cls", "kind": "angle"},
                {"token": "patch", "kind": "mse", "teachers": ["alpha"]},
                {"token": "patch", "kind": "cosine", "teachers": ["beta"]},
            ],
            "standardize": {"cls": "none", "patch": "phi_s"},
            "balance": "sum",
        }
    )
)
ONE_EPOCH = STUDENT.optimizer.model_copy(update={"epochs": 1, "lr": 0.05})
TURNED = STUDENT.model_copy(
    update={"loss": LOSS, "optimizer": ONE_EPOCH, "ladder": LadderConfig(kind="mlp_v2", hidden=8, layers=1)}
)


@pytest.fixture(scope="module")
def rows(template: World) -> Rows:
    source = template.source()
    return Rows(source, usable_rows(source.dataset, source.caches, VIEWS, ("cls", "patch"), source.dataset.blocks))


def tokens(rows: Rows, teacher: str, token: Any, view: int = 0) -> np.ndarray[Any, Any]:
    cache, block_rows = rows.source.caches[teacher], rows.source.dataset.block_rows
    return np.stack([cache.read_block(view, token, r // block_rows).values[r % block_rows] for r in rows.rows_N])


def test_what_a_loss_needs() -> None:
    assert needed(LOSS, "alpha").rotations == ("patch",)
    assert needed(LOSS, "alpha").dispersions == ("cls",)
    assert not needed(LossConfig(), "alpha")


@pytest.mark.parametrize("teacher", list(TEACHERS))
def test_rotated_targets_have_one_scale_and_keep_distances(rows: Rows, teacher: str) -> None:
    """Of a few rows all are the sample; `alpha` is stored as float16, `beta` as int8."""
    from concurrent.futures import ThreadPoolExecutor

    measured = measure(teacher, [rows], needed(LOSS, teacher))
    rotation_DD = measured.rotations["patch"]
    np.testing.assert_allclose(rotation_DD @ rotation_DD.T, np.eye(len(rotation_DD)), atol=1e-12)
    x_MD = tokens(rows, teacher, "patch").reshape(-1, len(rotation_DD)).astype(np.float64)
    if len(rotation_DD) == 4:  # of five dimensions there is no Hadamard matrix
        np.testing.assert_allclose(np.var(x_MD @ rotation_DD.T, axis=0), np.var(x_MD, axis=0).mean(), rtol=1e-6)
    statistics = merge_statistics(rows.source.caches[teacher].folder, range(VIEWS), rows.source.dataset.blocks)
    standard = standard_of(statistics, "patch", "phi_s", rotation_DD)
    assert statistics.patch is not None
    phi = 1 / np.sqrt(np.array(statistics.patch.m2).sum() / statistics.patch.count / len(rotation_DD))
    with ThreadPoolExecutor(1) as pool:
        window = BlockWindow(rows.source.caches, pool, 99)
        reader = TargetReader(window, {(teacher, "patch"): {standard.name: standard}}, rows.source.dataset.block_rows)
        y_MD = reader.read(rows.rows_N, 0)[teacher, "patch"].decode(standard.name).flatten(0, 1).double().numpy()
    np.testing.assert_allclose(y_MD, phi * (x_MD - np.array(statistics.patch.mean)) @ rotation_DD.T, atol=2e-4)
    apart = [np.linalg.norm(z[1:] - z[:-1], axis=1) for z in (x_MD, y_MD)]
    np.testing.assert_allclose(apart[1], phi * apart[0], rtol=1e-3, atol=1e-4)


def test_dispersion_is_the_mean_squared_angle_to_the_mean_direction(rows: Rows) -> None:
    measured = measure("alpha", [rows], needed(LOSS, "alpha")).document.dispersions
    x_ND = tokens(rows, "alpha", "cls").astype(np.float64)
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    mean_D = unit_ND.mean(0) / np.linalg.norm(unit_ND.mean(0))
    assert measured == {"cls": pytest.approx(np.square(np.arccos(unit_ND @ mean_D)).mean(), rel=1e-6)}


def test_what_was_measured_is_frozen_and_guarded(world: World) -> None:
    """Gone, it is measured again; another file is not gone on with; the adaptors undo the rotation."""
    assert not world.distill(TURNED, stop_after=2)
    (folder,) = world.folder.glob("students/main-*")
    manifest = StudentManifest.from_bytes((folder / "manifest.json").read_bytes(), "manifest")
    files = {path.name: path for path in (folder / "statistics" / "targets").iterdir()}
    assert set(files) == {"alpha.json", "alpha.patch.npy", "beta.json", "beta.patch.npy"}
    assert set(manifest.targets) == set(TEACHERS)
    assert student_findings(folder, quick=False)[1] == []
    before = files["alpha.patch.npy"].read_bytes()
    files["alpha.patch.npy"].write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert student_findings(folder, quick=False)[1] == [("statistics/targets/alpha.patch.npy", "content")]
    with pytest.raises(StageError, match="not what was written"):
        world.distill(TURNED)
    files["alpha.patch.npy"].unlink()
    assert world.distill(TURNED)
    assert files["alpha.patch.npy"].read_bytes() == before
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    here = student_folder(world)
    found = load_student(here / "export").adapt("beta")(x)
    expected = in_teachers_units(world, TURNED, here, x)
    torch.testing.assert_close(found.cls, expected["cls"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patch, expected["patch"], rtol=1e-4, atol=1e-5)


def in_teachers_units(world: World, student: StudentConfig, folder: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the last checkpoint's student says of teacher beta's tokens, undone by hand."""
    from unic_pipe.pipeline.students.heads.heads import inputs
    from unic_pipe.schemas.features import StatisticsDocument
    from unic_pipe.stages.distill.model.distiller import Distiller

    file = sorted(folder.glob("checkpoints/*.pt"))[-1]
    state = torch.load(file, weights_only=True)["state"]
    model = Distiller(student, world.definition(student).teachers, torch.device("cpu")).eval()
    model.student.load(state["student"])
    model.ladder.load_state_dict(state["ladder"])
    with torch.no_grad():
        outputs = inputs(model.student, model.ladder, model.student(x, model.ladder.rungs.blocks))
        raw = {token: by_teacher["beta"] for token, by_teacher in model.ladder(*outputs).items()}
    statistics = StatisticsDocument.from_bytes((folder / "statistics/beta.json").read_bytes(), "beta").patch
    assert statistics is not None
    rotation = torch.from_numpy(np.load(folder / "statistics/targets/beta.patch.npy")).float()
    scale = float(np.sqrt(np.array(statistics.m2).mean() / statistics.count))
    patch = raw["patch"] @ rotation * scale + torch.tensor(statistics.mean)
    return {"cls": raw["cls"], "patch": patch}


def test_a_ladder_undoes_the_rotation_too(world: World) -> None:
    student = TURNED.model_copy(update={"ladder": STUDENT.ladder})
    assert world.distill(student)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = load_student(student_folder(world) / "export").adapt("beta")(x)
    expected = in_teachers_units(world, student, student_folder(world), x)
    torch.testing.assert_close(found.patch, expected["patch"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cls, expected["cls"], rtol=1e-4, atol=1e-5)
