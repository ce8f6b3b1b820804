"""Students of every kind of network through the stages: stopped, killed, resumed to the same bits, exported, probed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
from architectures import FAMILIES, Family
from safetensors.torch import save_file

from unic_pipe.pipeline.encoders import load_encoder

KILLED = ("test_efficientnet", "vit_medium_patch16_reg4_gap_256")
WARM = {
    "init": "checkpoint:weights.safetensors",
    "optimizer": {"epochs": 1, "warmup_epochs": 0, "batch": 8, "lr": 0.003, "layer_decay": 0.5, "frozen_steps": 5},
}
"""Of the first: killed while its heads settle."""


def settings(family: Family) -> list[str]:
    """What makes the student of the usual working folder one of this architecture."""
    student = {
        "architecture": family.architecture, "model_args": family.model_args, "image_size": family.image_size,
        "optimizer": {"epochs": 1, "warmup_epochs": 0, "batch": 8, "lr": 0.003},
    }  # fmt: skip
    return [f"students.tiny.{key}={json.dumps(value)}" for key, value in student.items()]


def copy_of(work: Any, folder: Path) -> Any:
    return type(work)(shutil.copytree(work.folder, folder, symlinks=True))


def results(work: Any) -> dict[str, bytes]:
    return {name: data for name, data in work.content("students").items() if "/export/" in name or "latest" in name}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=[family.architecture for family in FAMILIES])
def test_stopped_resumed_and_probed(family: Family, extracted_template: Any, tmp_path: Path) -> None:
    once, again = (copy_of(extracted_template, tmp_path / name) for name in ("once", "again"))
    given = settings(family)
    once.distill(*given)
    again.distill(*given, stop_at=40)
    assert not (again.folder / "students" / "tiny").exists()
    again.distill(*given)
    assert results(again) == results(once)
    encoder = load_encoder(str(once.student() / "export"))
    assert encoder.definition.readout == family.readout
    once.index(*given)
    records = once.evaluate(*given, "evaluate.probes=[knn]", "evaluate.baseline=false")
    probed = [record for record in records if record.encoder == "tiny"]
    assert probed
    assert once.states(*given)["students/tiny"] == "fresh"


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed_by_the_command(name: str, zygote: Any, extracted_template: Any, tmp_path: Path) -> None:
    student = settings(next(f for f in FAMILIES if f.architecture == name))
    once, again = (copy_of(extracted_template, tmp_path / n) for n in ("once", "again"))
    if name == KILLED[0]:
        student += [f"students.tiny.{key}={json.dumps(value)}" for key, value in WARM.items()]
        start = timm.create_model(name).state_dict()
        for work in (once, again):
            save_file(start, work.folder / "weights.safetensors")
    given = [word for one in student for word in ("--set", one)]
    ended = zygote(once.folder, "distill", *given)
    assert ended.status == 0, zygote.output()
    [saved] = [kind for kind in dict.fromkeys(ended.changes) if "step-N.pt" in kind and "remove" not in kind][:1]
    assert zygote(
        again.folder, "distill", *given, "--set", "distill.checkpoint_minutes=0.0001", before=saved, nth=3
    ).killed
    assert list(again.folder.glob("students/*/checkpoints/*.pt"))
    assert zygote(again.folder, "distill", *given).status == 0, zygote.output()
    assert results(again) == results(once)
