"""Class text embeddings from files, and by open_clip's text encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from unic_pipe.pipeline.encoders.texts import _local_weights, class_texts, embed_names, texts_digest
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.protocols import ZeroShotConfig


def config(classes: str, **more: object) -> ZeroShotConfig:
    return ZeroShotConfig.model_validate({"teacher": "clip", "test": "test", "classes": classes, **more})


def test_both_files_give_the_same_texts(tmp_path: Path) -> None:
    x_CF = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    names = ["cat", "dog", "Katze ü"]
    np.savez(tmp_path / "a.npz", embeddings=x_CF, names=names)
    save_file({"embeddings": x_CF}, tmp_path / "a.safetensors", {"names": json.dumps(names)})
    one, two = (class_texts(config(f"a.{end}"), tmp_path) for end in ("npz", "safetensors"))
    assert one.names == two.names == tuple(names)
    np.testing.assert_array_equal(one.x_CF, two.x_CF)


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", embeddings=np.eye(2), names=np.array(["a", {"b": 1}], dtype=object))
    with pytest.raises(UserError, match="allow_pickle"):
        class_texts(config("a.npz"), tmp_path)


def test_a_file_of_names_needs_a_model_and_embeddings_need_none() -> None:
    with pytest.raises(ValidationError, match="need text_model and text_weights"):
        config("names.txt")
    with pytest.raises(ValidationError, match="holds embeddings"):
        config("a.npz", text_model="ViT-B-32", text_weights="openai")
    with pytest.raises(ValidationError, match=r"has no \{\} for the class name"):
        config("names.txt", text_model="ViT-B-32", text_weights="openai", templates=("a photo",))


def test_templates_and_weights_are_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    given = {"text_model": "ViT-B-32", "text_weights": "openai"}
    digests = {
        texts_digest(config("names.txt", **given | more), tmp_path)
        for more in ({}, {"templates": ("{}",)}, {"text_weights": "laion2b_s34b_b79k"}, {"text_model": "ViT-B-16"})
    }
    assert len(digests) == 4


def test_open_clip_embeds_prompts_and_averages_them() -> None:
    """Random weights: a class is the mean of its own prompts, whatever the other classes are."""
    pytest.importorskip("open_clip")
    both = ("a photo of a {}.", "a drawing of a {}.")
    first = embed_names(["cat", "dog"], both[:1], "ViT-S-32-alt", None)
    second = embed_names(["cat"], both[1:], "ViT-S-32-alt", None)
    together = embed_names(["dog", "cat"], both, "ViT-S-32-alt", None)
    np.testing.assert_allclose(together.x_CF[1], (first.x_CF[0] + second.x_CF[0]) / 2, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(first.x_CF, axis=1), 1, atol=1e-5)
    assert np.abs(first.x_CF[0] - first.x_CF[1]).max() > 1e-3
    with pytest.raises(UserError, match="open_clip cannot load no-such-model"):
        embed_names(["cat"], both, "no-such-model", None)


def test_weights_of_a_tag_are_those_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = pytest.importorskip("open_clip")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError, match="openai of ViT-B-32 are not on this machine") as caught:
        embed_names(["cat"], ["{}"], "ViT-B-32", "openai")
    assert "text_weights: FILE" in (caught.value.hint or "")
    with pytest.raises(UserError, match="no weights nothing of ViT-B-32"):
        embed_names(["cat"], ["{}"], "ViT-B-32", "nothing")
    repository = tmp_path / "hub" / "models--timm--vit_base_patch32_clip_224.openai"
    for name, text in (("refs/main", "0123"), ("snapshots/0123/open_clip_model.safetensors", "")):
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_text(text)
    assert _local_weights(open_clip, "ViT-B-32", "openai") == str(
        repository / "snapshots/0123/open_clip_model.safetensors"
    )


@pytest.mark.parametrize(
    "model", ["hf-hub:timm/ViT-B-16-SigLIP", "local-dir:/x", "roberta-ViT-B-32", "ViT-B-16-SigLIP"]
)
def test_models_that_need_a_hub_are_refused(model: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(UserError, match="comes from a hub"):
        embed_names(["cat"], ["{}"], model, None)
