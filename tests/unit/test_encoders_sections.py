"""Weights as their makers meant them: averages, wrappers, older folders; and how an encoder was read is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from unic_pipe.pipeline.encoders import ResolvedEncoder, load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.catalogue import catalogue
from unic_pipe.pipeline.encoders.summary import assumption, facts, sentence
from unic_pipe.pipeline.workspace.differences import describe
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError

ARCHITECTURE = "vit_tiny_patch16_224"
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}

State = dict[str, torch.Tensor]


def state(seed: int) -> State:
    torch.manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, img_size=32, num_classes=0, **SMALL)
    return dict(model.state_dict())


MEANT, OTHER = state(0), state(1)


def under(prefix: str, tensors: State) -> State:
    return {prefix + key: value for key, value in tensors.items()}


SQUEEZED = {f"model_ema.{key.replace('.', '')}": value for key, value in MEANT.items()}
SQUEEZED |= {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
"""Names of buffers have no dots."""


def resolve(tmp_path: Path, content: Mapping[str, Any], **fields: Any) -> ResolvedEncoder:
    torch.save(content, tmp_path / "file.pth")
    config = EncoderConfig(
        encoder="checkpoint:file.pth", architecture=ARCHITECTURE, image_size=32, model_args=SMALL, **fields
    )
    return resolve_encoder("a", config, tmp_path, tmp_path)


def holds(resolved: ResolvedEncoder, tensors: State) -> bool:
    loaded = load_encoder(resolved).model.state_dict()
    return all(torch.equal(loaded[key], value) for key, value in tensors.items())


@pytest.mark.parametrize(
    ("content", "section"),
    [
        ({"state_dict": OTHER, "state_dict_ema": MEANT, "epoch": 1}, "state_dict_ema"),
        ({"model": OTHER, "model_ema": MEANT}, "model_ema"),
        ({"model": OTHER, "ema": under("module.", MEANT)}, "ema.module"),
        ({"model": OTHER, "ema": {"state_dict": MEANT, "decay": 0.99}}, "ema.state_dict"),
        ({"state_dict": under("model.", OTHER) | under("ema_model.module.", MEANT)}, "state_dict.ema_model.module"),
        ({"state_dict": under("backbone.", OTHER) | under("ema.backbone.", MEANT)}, "state_dict.ema.backbone"),
        ({"model": under("student.backbone.", OTHER) | under("teacher.backbone.", MEANT)}, "model.teacher.backbone"),
        ({"student": under("module.backbone.", OTHER), "teacher": under("backbone.", MEANT)}, None),
        ({"model": OTHER, "ema": {"decay": 0.9, "shadow_params": list(MEANT.values())}}, "ema.shadow_params"),
        ({"model": OTHER, "ema": {"shadow": MEANT, "num_updates": 3}}, "ema.shadow"),
        ({"model": OTHER, "modelEMA": MEANT, "opt": {"exp_avg": OTHER}}, "modelEMA"),
        ({"state_dict": under("model.", OTHER) | SQUEEZED}, "state_dict.model_ema"),
    ],
)
def test_averages_are_preferred_and_said(tmp_path: Path, content: Mapping[str, Any], section: str | None) -> None:
    resolved = resolve(tmp_path, content)
    assert holds(resolved, MEANT)
    assert resolved.definition.section == section
    assert f"weights from {section or 'teacher'} (beside it: " in sentence(resolved)
    assert facts(resolved)["section"] == (section or "teacher")


@pytest.mark.parametrize(
    ("content", "section"),
    [
        ({"state_dict": under("model.", MEANT), "epoch": 3}, "state_dict.model"),
        (under("encoder.", MEANT), "encoder"),
        (under("teacher.", MEANT), "teacher"),
        ({"net": MEANT}, "net"),
        ({"model_state_dict": MEANT, "optimizer_state_dict": {"exp_avg": OTHER}}, "model_state_dict"),
        ({"weights": {"model": under("a.b.c.", MEANT)}}, "weights.model.a.b.c"),
        ({"state_dict": under("model.", MEANT) | {"criterion.weight": torch.ones(3)}}, "state_dict.model"),
    ],
)
def test_any_one_wrapper_that_fits_is_stripped(tmp_path: Path, content: Mapping[str, Any], section: str) -> None:
    resolved = resolve(tmp_path, content)
    assert holds(resolved, MEANT)
    assert resolved.definition.section == section


@pytest.mark.parametrize(
    "content",
    [MEANT, {"model": MEANT}, {"state_dict": under("module.", MEANT)}, {"teacher": under("backbone.", MEANT)}],
)
def test_what_was_read_before_keeps_its_digest(tmp_path: Path, content: Mapping[str, Any]) -> None:
    resolved = resolve(tmp_path, content)
    assert holds(resolved, MEANT)
    assert resolved.definition.section is None
    assert "section" not in resolved.definition.model_dump(exclude_defaults=True)


def test_two_sets_of_weights_need_a_word_of_the_user(tmp_path: Path) -> None:
    moco = {"state_dict": under("module.base_encoder.", MEANT) | under("module.momentum_encoder.", OTHER)}
    with pytest.raises(UserError, match=r"more than once: state_dict\.module\.base_encoder\., ") as caught:
        resolve(tmp_path, moco)
    assert "prefix: state_dict.module.base_encoder." in (caught.value.hint or "")
    for prefix in ("module.base_encoder.", "base_encoder", "state_dict.module.base_encoder"):
        assert holds(resolve(tmp_path, moco, prefix=prefix), MEANT)
    assert holds(resolve(tmp_path, moco, prefix="momentum_encoder"), OTHER)
    with pytest.raises(UserError, match="no key begins with prefix 'nothing'"):
        resolve(tmp_path, moco, prefix="nothing")


def test_the_prefix_overrides_the_average(tmp_path: Path) -> None:
    content = {"model": OTHER, "model_ema": MEANT}
    assert holds(resolve(tmp_path, content, prefix="model."), OTHER)
    assert resolve(tmp_path, content, prefix="model.").definition.section is None


def test_another_section_is_another_encoder_with_that_reason(tmp_path: Path) -> None:
    now = resolve(tmp_path, {"model": OTHER, "model_ema": MEANT}).definition
    before = now.model_copy(update={"section": None})
    assert digest_of(now) != digest_of(before)
    assert "section: none → model_ema (weights are read from there now" in describe(before, now)


def test_averages_that_lack_something_are_not_used_but_said(tmp_path: Path) -> None:
    few = {key: value for key, value in OTHER.items() if not key.startswith("norm.")}
    resolved = resolve(tmp_path, {"model": MEANT, "model_ema": few})
    assert holds(resolved, MEANT)
    assert "weights from model (beside it: model_ema)" in sentence(resolved)


def test_averages_of_parameters_alone_have_the_buffers_beside_them(tmp_path: Path) -> None:
    usual, meant = (timm.create_model("test_resnet", num_classes=0) for _ in range(2))
    usual.bn1.running_mean += 1
    config = EncoderConfig(encoder="checkpoint:file.pth", architecture="test_resnet", image_size=64)
    for average, section in (
        ({"shadow_params": list(meant.parameters())}, "ema.shadow_params"),
        ({"shadow": dict(meant.named_parameters())}, "ema.shadow"),
    ):
        torch.save({"model": usual.state_dict(), "ema": average}, tmp_path / "file.pth")
        resolved = resolve_encoder("a", config, tmp_path, None)
        assert resolved.definition.section == section
        assert holds(resolved, dict(meant.named_parameters()) | {"bn1.running_mean": usual.bn1.running_mean})
    squeezed = {f"model_ema.{key.replace('.', '')}": value for key, value in meant.named_parameters()}
    squeezed |= {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    for wrapper in ("model.", "net.model.", ""):
        content = under(wrapper, dict(usual.state_dict())) | squeezed | {"loss.weight": torch.ones(2)}
        torch.save({"state_dict": content}, tmp_path / "file.pth")
        resolved = resolve_encoder("a", config, tmp_path, None)
        assert resolved.definition.section == "state_dict.model_ema"
        assert holds(resolved, dict(meant.named_parameters()) | {"bn1.running_mean": usual.bn1.running_mean})


def test_a_teacher_of_another_size_is_not_taken_for_the_average_of_its_student(tmp_path: Path) -> None:
    large = timm.create_model(ARCHITECTURE, img_size=32, num_classes=0, **SMALL | {"embed_dim": 48})
    resolved = resolve(tmp_path, {"student": MEANT, "teacher": large.state_dict()})
    assert holds(resolved, MEANT)
    assert resolved.definition.section == "student"


def test_what_pytorch_has_against_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit vit_tiny_patch16_224: While copying the parameter named .?norm"):
        resolve(tmp_path, MEANT | {"norm.weight": MEANT["norm.weight"].to_sparse()})


def test_an_average_that_cannot_be_named_is_said(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, {"model": MEANT, "ema": {"shadow_params": list(OTHER.values())[1:]}})
    assert holds(resolved, MEANT)
    assert "weights from model (beside it: ema.shadow_params, a list without names)" in sentence(resolved)


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [(0.0, "^a gives the same features for every image"), (float("nan"), "^a gives NaN or infinite")],
)
def test_weights_that_say_nothing_are_refused(tmp_path: Path, spoiled: float, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        resolve(tmp_path, {key: value * spoiled for key, value in MEANT.items()})
    with pytest.raises(UserError, match=reason):
        resolve(tmp_path, MEANT | {"patch_embed.proj.weight": MEANT["patch_embed.proj.weight"] * spoiled})


def test_statistics_of_batch_norm_that_were_not_written_are_refused(tmp_path: Path) -> None:
    """Zeros in a whole layer; a channel that died has a variance of zero, and is one of many."""
    model = timm.create_model("test_resnet", num_classes=0)
    config = EncoderConfig(encoder="checkpoint:file.pth", architecture="test_resnet", image_size=64)

    def resolved() -> ResolvedEncoder:
        torch.save(model.state_dict(), tmp_path / "file.pth")
        return resolve_encoder("a", config, tmp_path, None)

    assert "BatchNorm statistics as before any training (mean 0, variance 1" in sentence(resolved())
    model.bn1.running_var[0] = 0
    assert "before any training" not in sentence(resolved())
    model.bn1.running_var[:] = 0
    with pytest.raises(UserError, match=r"^a: the variances .* are all zero in 1 of \d+ layers \(first: bn1\)"):
        resolved()
    random = EncoderConfig(encoder="timm:test_resnet", weights="random:0", image_size=64)
    assert "before any training" not in sentence(resolve_encoder("a", random, tmp_path, None))


def test_hub_folder_of_the_older_form(tmp_path: Path) -> None:
    folder = tmp_path / "legacy"
    folder.mkdir()
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    old = {"architecture": "test_vit", "num_classes": 0, "input_size": [3, 160, 160], "mean": [0.5, 0.4, 0.3],
           "std": [0.5, 0.5, 0.6], "crop_pct": 0.95, "classifier": "head"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(old))
    resolved = resolve_encoder("a", EncoderConfig(encoder="checkpoint:legacy"), tmp_path, None)
    assert (resolved.definition.image_size, resolved.definition.mean) == (160, (0.5, 0.4, 0.3))
    assert holds(resolved, dict(model.state_dict()))
    assert assumption(resolved) == ""


def test_mean_and_std_that_nobody_gave_are_called_an_assumption(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, {"model": MEANT})
    assert "mean 0.5 is timm's default for vit_tiny_patch16_224; give mean and std if" in assumption(resolved)
    assert assumption(resolved) in sentence(resolved).replace(" and std 0.5: ", " is ")
    half = (0.5, 0.5, 0.5)
    assert assumption(resolve(tmp_path, {"model": MEANT}, mean=half, std=half)) == ""


def test_the_catalogue_says_how_configured_teachers_are_read(tmp_path: Path) -> None:
    torch.save({"model": OTHER, "model_ema": MEANT}, tmp_path / "a.pth")
    config = EncoderConfig(encoder="checkpoint:a.pth", architecture=ARCHITECTURE, image_size=32, model_args=SMALL)
    wrong = config.model_copy(update={"architecture": "resnet18", "model_args": {}})
    good, bad = catalogue({"a": config, "b": wrong}, tmp_path, tmp_path)[:2]
    assert good.resolved is not None
    assert facts(good.resolved) == {
        "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "grid": [4, 4], "readout": "vit",
        "normalisation": "timm's default for vit_tiny_patch16_224; give mean and std if your weights were trained otherwise",
        "pooling": "class token", "section": "model_ema", "beside": ["model"],
    }  # fmt: skip
    assert "does not fit resnet18" in (bad.problem or "")


def test_one_channel_teachers_are_told_plainly(tmp_path: Path) -> None:
    config = EncoderConfig(encoder="timm:test_vit", weights="random:0", image_size=64, model_args={"in_chans": 1})
    with pytest.raises(UserError, match=r"^a has 1 input channel; images have 3"):
        resolve_encoder("a", config, tmp_path, None)
    torch.save(timm.create_model("test_resnet", in_chans=1, num_classes=0).state_dict(), tmp_path / "grey.pth")
    grey = EncoderConfig(encoder="checkpoint:grey.pth", architecture="test_resnet", image_size=64)
    with pytest.raises(UserError, match="takes 1 input channel, images have 3"):
        resolve_encoder("a", grey, tmp_path, None)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """PyTorch copies the real part alone, and quantised values without their scale."""
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"file\.pth: norm\.weight holds {kind} numbers"):
        resolve(tmp_path, MEANT | {"norm.weight": MEANT["norm.weight"].to(dtype)})
