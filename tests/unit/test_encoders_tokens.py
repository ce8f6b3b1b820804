"""What encoders do with images: readouts, preprocessing, precision, and staying frozen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from builders import encoder_definition
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn

from unic_pipe.pipeline.encoders import Encoder, ResolvedEncoder, load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.checkpoints import read_file
from unic_pipe.pipeline.encoders.conversions import efficientnet_lite_to_timm
from unic_pipe.pipeline.encoders.locate import find_weights
from unic_pipe.pipeline.encoders.registry import REGISTRY
from unic_pipe.pipeline.encoders.sections import state_dict_of
from unic_pipe.pipeline.views.render import normalize
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import ComputeDefinition

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
FLOAT32 = ComputeDefinition(dtype="float32", batch=4, threads=1, channels_last=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models on busy cores lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_encoder(tmp_path: Path, encoder: str, size: int = 32, seed: int = 0, **model_args: Any) -> Encoder:
    config = EncoderConfig(encoder=encoder, weights=f"random:{seed}", image_size=size, model_args=model_args)
    return load_encoder(resolve_encoder("any", config, tmp_path, None))


def images(size: int = 32, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_sees_the_palace(number: int) -> None:
    card = REGISTRY[f"efficientnet-lite{number}"]
    path = find_weights(card, Path("nowhere"))
    assert path is not None
    model = timm.create_model(card.architecture).eval()
    state = efficientnet_lite_to_timm(state_dict_of(read_file(path), path), [len(stage) for stage in model.blocks])
    assert list(model.load_state_dict(state, strict=True)) == [[], []]
    x_13HW = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float()
    x_13HW = nn.functional.interpolate(x_13HW, size=(card.image_size,) * 2, mode="bicubic", antialias=True)
    with torch.inference_mode():
        logits = model(normalize(x_13HW.clamp(0, 255).to(torch.uint8), card.mean, card.std))
    assert torch.isfinite(logits).all()
    assert 698 in logits[0].topk(5).indices  # ImageNet's "palace"


def test_efficientnet_lite_tokens_are_the_final_map_and_its_mean(tmp_path: Path) -> None:
    encoder = load_encoder(resolve_encoder("lite0", EncoderConfig(image_size=96), tmp_path, None))
    definition = encoder.definition
    assert (definition.readout, definition.grid, definition.cls_dim, definition.patch_dim) == (
        "cnn",
        (3, 3),
        1280,
        1280,
    )
    x_B3HW = normalize(images(96), definition.mean, definition.std)
    cls_BD, patch_BPD = encoder(x_B3HW)
    map_BDHW = encoder.model.forward_features(x_B3HW)
    for row in range(3):
        for column in range(3):
            assert torch.equal(patch_BPD[:, 3 * row + column], map_BDHW[:, :, row, column])
    torch.testing.assert_close(cls_BD, patch_BPD.mean(dim=1))


def test_cnn_whose_head_is_wider_than_its_map(tmp_path: Path) -> None:
    encoder = random_encoder(tmp_path, "timm:mobilenetv3_small_050", 64)
    cls_BD, patch_BPD = encoder.encode(images(64), FLOAT32)
    assert (encoder.definition.cls_dim, encoder.definition.patch_dim) == (cls_BD.shape[1], patch_BPD.shape[2])
    assert encoder.definition.cls_dim == encoder.model.head_hidden_size != encoder.definition.patch_dim


def test_maps_with_channels_last_are_read_row_by_row(tmp_path: Path) -> None:
    encoder = random_encoder(tmp_path, "timm:swin_tiny_patch4_window7_224", 64)
    x_B3HW = torch.rand(2, 3, 64, 64)
    cls_BD, patch_BPD = encoder(x_B3HW)
    map_BHWD = encoder.model.forward_features(x_B3HW)
    assert encoder.definition.grid == (2, 2)
    torch.testing.assert_close(patch_BPD, map_BHWD.flatten(1, 2))
    torch.testing.assert_close(cls_BD, map_BHWD.mean(dim=(1, 2)))


def test_distillation_token_is_dropped(tmp_path: Path) -> None:
    encoder = random_encoder(tmp_path, "timm:deit_tiny_distilled_patch16_224", depth=1)
    x_B3HW = torch.rand(2, 3, 32, 32)
    tokens_BTD = encoder.model.forward_features(x_B3HW)
    cls_BD, patch_BPD = encoder(x_B3HW)
    assert torch.equal(cls_BD, tokens_BTD[:, 0])
    assert torch.equal(patch_BPD, tokens_BTD[:, 2:])


@pytest.mark.parametrize(
    ("name", "registers", "classes"),
    [("dinov2-g", 4, 0), ("metaclip-h", 0, 20)],
)
def test_large_teachers_at_reduced_size(tmp_path: Path, name: str, registers: int, classes: int) -> None:
    """The reference is timm's own model: its forward_features ends with the final norm."""
    small = {"embed_dim": 96, "depth": 2, "num_heads": 4}
    card = REGISTRY[name]
    torch.manual_seed(1)
    reference = timm.create_model(card.architecture, img_size=28, num_classes=classes, **small).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_file(reference.state_dict(), tmp_path / card.files[0])
    encoder = load_encoder(resolve_encoder(name, EncoderConfig(image_size=28, model_args=small), tmp_path, None))
    x_B3HW = torch.rand(2, 3, 28, 28)
    with torch.inference_mode():
        tokens_BTD = reference.forward_features(x_B3HW)
    cls_BD, patch_BPD = encoder(x_B3HW)
    assert patch_BPD.shape == (2, 4, 96)
    torch.testing.assert_close(cls_BD, tokens_BTD[:, 0])
    torch.testing.assert_close(patch_BPD, tokens_BTD[:, 1 + registers :])


def test_metaclip_uses_quick_gelu(tmp_path: Path) -> None:
    encoder = random_encoder(tmp_path, "metaclip-h", 28, embed_dim=32, depth=1, num_heads=2)
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(encoder.model.blocks[0].mlp.act(x), x * torch.sigmoid(1.702 * x))


def test_encode_normalises_with_the_encoders_mean_and_std(tmp_path: Path) -> None:
    config = EncoderConfig(
        encoder="timm:vit_tiny_patch16_224", weights="random:0", image_size=32, model_args=SMALL,
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7),
    )  # fmt: skip
    encoder = load_encoder(resolve_encoder("x", config, tmp_path, None))
    mean_311, std_311 = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    expected = encoder((images() / 255 - mean_311) / std_311)
    found = encoder.encode(images(), FLOAT32)
    torch.testing.assert_close(found.cls, expected.cls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.patch, expected.patch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encode_gives_float32_in_every_precision(tmp_path: Path, dtype: str, channels_last: bool) -> None:
    encoder = random_encoder(tmp_path, "timm:resnet18", 64)
    exact = encoder.encode(images(64), FLOAT32)
    compute = FLOAT32.model_copy(update={"dtype": dtype, "channels_last": channels_last})
    found = encoder.encode(images(64), compute)
    assert found.cls.dtype == found.patch.dtype == torch.float32
    tolerance = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(found.cls, exact.cls, rtol=tolerance, atol=tolerance)
    if dtype == "bfloat16":
        assert not torch.equal(found.cls, exact.cls)


def test_encode_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    encoder = random_encoder(tmp_path, "timm:resnet18", 64)
    other = random_encoder(tmp_path, "timm:resnet18", 64)
    compute = FLOAT32.model_copy(update={"channels_last": True})
    first, second = encoder.encode(images(64), compute), other.encode(images(64), compute)
    assert first.cls.numpy().tobytes() == second.cls.numpy().tobytes()
    assert first.patch.numpy().tobytes() == second.patch.numpy().tobytes()


def test_encoder_stays_frozen(tmp_path: Path) -> None:
    encoder = random_encoder(tmp_path, "timm:resnet18", 64).train()
    statistics = encoder.model.bn1.running_mean.clone()
    encoder(torch.rand(2, 3, 64, 64))
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(encoder.model.bn1.running_mean, statistics)


class _Hungry(nn.Module):
    """Asks for an exabyte, as an encoder whose batch is too large would."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward_features(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**58, device=x_B3HW.device)


def test_out_of_memory_says_what_to_set() -> None:
    definition = encoder_definition(1, 1, (1, 1), architecture="hungry")
    with pytest.raises(StageError, match="Out of memory on cpu: 3 images of 32 x 32 pixels") as caught:
        Encoder(_Hungry(), definition).encode(images(), FLOAT32)
    assert "unic-pipe extract --batch 1" in (caught.value.hint or "")


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = random_encoder(tmp_path, "timm:vit_tiny_patch16_224", seed=7, **SMALL).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    same = random_encoder(tmp_path, "timm:vit_tiny_patch16_224", seed=7, **SMALL).model.state_dict()
    other = random_encoder(tmp_path, "timm:vit_tiny_patch16_224", seed=8, **SMALL).model.state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["pos_embed"], other["pos_embed"])


def test_resolved_encoder_survives_pickling(tmp_path: Path) -> None:
    import pickle

    config = EncoderConfig(encoder="timm:vit_tiny_patch16_224", weights="random:1", image_size=32, model_args=SMALL)
    resolved = resolve_encoder("x", config, tmp_path, None)
    copy: ResolvedEncoder = pickle.loads(pickle.dumps(resolved))
    assert copy.digest == resolved.digest
    tokens = load_encoder(copy).encode(images(), FLOAT32)
    np.testing.assert_array_equal(tokens.cls.numpy(), load_encoder(resolved).encode(images(), FLOAT32).cls.numpy())
