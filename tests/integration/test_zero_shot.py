"""Zero-shot classification: a tiny CLIP-like teacher whose right answers are known, its student, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F

from unic_pipe import load_student
from unic_pipe.pipeline.encoders import load_encoder
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.views.render import normalize, render_view
from unic_pipe.pipeline.workspace.ladders import adapted
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.convert import export_official, import_encoder

CLIP = (
    "teachers.clip.encoder=timm:vit_tiny_patch16_224",
    "teachers.clip.weights=clip.safetensors",
    "teachers.clip.model_args={embed_dim: 48, num_heads: 3, depth: 1, patch_size: 8}",
    "teachers.clip.image_size=32",
    "students.tiny.teachers=[lite1, clip]",
    "evaluate.probes=[knn]",
    "evaluate.zero_shot.words={teacher: clip, test: test, classes: words.npz}",
)
DIMS = 24


@pytest.fixture(scope="module")
def template(extracted_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A working folder with a third teacher: a random vision transformer with a projection, and a student of it."""
    import shutil

    folder = tmp_path_factory.mktemp("clip") / "work"
    shutil.copytree(extracted_template.folder, folder, symlinks=True)
    torch.manual_seed(1)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=DIMS, img_size=32, embed_dim=48, num_heads=3, depth=1, patch_size=8
    )
    torch.nn.init.normal_(model.head.weight)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    (folder / "weights").mkdir()
    save_file(state, folder / "weights" / "clip.safetensors")
    work = type(extracted_template)(folder)
    work.extract(*CLIP)
    work.index(*CLIP)
    work.distill(*CLIP)
    np.savez(folder / "words.npz", embeddings=np.eye(10, DIMS), names=[str(i) for i in range(10)])
    return work


def copied(template: Any, tmp_path: Path) -> Any:
    import shutil

    shutil.copytree(template.folder, tmp_path / "work", symlinks=True)
    return type(template)(tmp_path / "work")


def images(work: Any, size: int) -> torch.Tensor:
    dataset = work.dataset("test")
    rows = [int(row) for row in dataset.rows()]
    return torch.stack([render_view(decode_image(dataset.read(r)), CENTER, 0, dataset.key(r), 0, size) for r in rows])


def embedded(work: Any) -> torch.Tensor:
    """The teacher's image embeddings by the whole model, classifier included: the way CLIP does it."""
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=DIMS, img_size=32, embed_dim=48, num_heads=3, depth=1, patch_size=8
    ).eval()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(work.folder / "weights" / "clip.safetensors"))
    with torch.inference_mode():
        return F.normalize(model(normalize(images(work, 32), (0.5,) * 3, (0.5,) * 3)), dim=-1)


def test_teacher_and_student_are_scored_by_the_teachers_projection(template: Any, tmp_path: Path) -> None:
    work = copied(template, tmp_path)
    labels = torch.from_numpy(work.dataset("test").labels())
    z_NF = embedded(work)
    means = torch.stack([z_NF[labels == c].mean(0) for c in range(10)]).numpy()
    np.savez(work.folder / "words.npz", embeddings=means, names=[str(i) for i in range(10)])
    records = [r for r in work.evaluate(*CLIP) if r.definition.probe == "zero-shot"]
    assert [(r.encoder, r.role, r.status) for r in records] == [
        ("tiny", "student", "done"),
        ("clip", "teacher", "done"),
    ]
    student, teacher = records
    similarity_NC = z_NF @ F.normalize(torch.from_numpy(means), dim=-1).T
    top1 = float((similarity_NC.argmax(1) == labels).float().mean())
    assert top1 > 0.2  # class means: better than guessing
    assert teacher.metrics["top1"] == pytest.approx(top1)
    top5 = float((similarity_NC.topk(5).indices == labels[:, None]).any(1).float().mean())
    assert teacher.metrics["top5"] == pytest.approx(top5)
    assert student.chosen == {"test_samples": 40, "classes": 10}

    # Nothing is computed again, and the report shows both.
    assert [r.digest for r in work.evaluate(*CLIP)][-2:] == [r.digest for r in records]
    assert work.artefact("evaluations/main", *CLIP).state == "fresh"
    # Other texts are another definition.
    np.savez(work.folder / "words.npz", embeddings=-means, names=[str(i) for i in range(10)])
    assert work.artefact("evaluations/main", *CLIP).state == "partial"
    worse = next(r for r in work.evaluate(*CLIP) if r.encoder == "clip" and r.definition.probe == "zero-shot")
    assert worse.metrics["top1"] < top1


def test_predictions_are_the_same_from_the_export_the_checkpoint_and_the_official_layout(
    template: Any, tmp_path: Path
) -> None:
    student = template.inventory(*CLIP).finished_students["tiny"]
    x = normalize(images(template, 32), (0.5,) * 3, (0.5,) * 3)
    found = load_student(template.folder / "students" / "tiny").adapt("clip")(x)
    older = dataclasses.replace(student, export=student.export.model_copy(update={"adaptors": None}))
    encoder = load_encoder(str(student.folder / "export"))
    torch.testing.assert_close(adapted(older, encoder, "clip", ("cls", "patch"))(x), found)

    file = export_official(student, tmp_path / "unic.pth").path
    again = load_student(import_encoder(tmp_path, tmp_path, file, "again"))
    torch.testing.assert_close(again.adapt("clip")(x), found, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"No cls ladder to teacher lite0 \(there are: clip, lite1\)"):
        again.adapt("lite0", ("cls",))


def test_an_imported_checkpoint_is_scored_like_the_student_that_it_came_from(template: Any, tmp_path: Path) -> None:
    work = copied(template, tmp_path)
    file = export_official(work.inventory(*CLIP).finished_students["tiny"], tmp_path / "unic.pth").path
    import_encoder(work.folder, work.folder / "weights", file, "rival")
    records = work.evaluate(*CLIP, "evaluate.encoders.rival.encoder=checkpoint:encoders/rival")
    by_name = {r.encoder: r for r in records if r.definition.probe == "zero-shot"}
    assert by_name["rival"].metrics == by_name["tiny"].metrics
    assert by_name["rival"].definition.features_test != by_name["tiny"].definition.features_test


def test_texts_of_another_space_are_said(template: Any, tmp_path: Path) -> None:
    work = copied(template, tmp_path)
    np.savez(work.folder / "words.npz", embeddings=np.ones((10, DIMS + 1)), names=[str(i) for i in range(10)])
    record = work.evaluate(*CLIP)[-1]
    assert record.status == "failed"
    assert "leads to 24" in record.message


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"embeddings": np.eye(4, DIMS), "names": list("0123")}, "there are 4 text embeddings"),
        ({"embeddings": np.full((10, DIMS), np.nan), "names": list("0123456789")}, "zero, NaN or infinite"),
        ({"embeddings": np.eye(10, DIMS)}, "no array names"),
    ],
)
def test_texts_that_do_not_fit_are_said_before_anything_is_scored(
    template: Any, tmp_path: Path, texts: Any, message: str
) -> None:
    work = copied(template, tmp_path)
    np.savez(work.folder / "words.npz", **texts)
    assert message in work.artefact("evaluations/main", *CLIP).reason


def test_a_teacher_without_projection_is_said(template: Any, tmp_path: Path) -> None:
    work = copied(template, tmp_path)
    record = work.evaluate(*CLIP[:-1], "evaluate.zero_shot.words={teacher: lite1, test: test, classes: words.npz}")[-1]
    assert record.status == "failed"
    assert "no projection of lite1's 1280 cls dimensions" in record.message


def test_missing_texts_skip_the_benchmark_and_leave_the_others(template: Any, tmp_path: Path) -> None:
    work = copied(template, tmp_path)
    (work.folder / "words.npz").unlink()
    assert {r.definition.probe for r in work.evaluate(*CLIP)} == {"knn"}
    assert "words is skipped: There is no file of classes" in work.artefact("evaluations/main", *CLIP).reason
