"""Finding, checking, converting and remembering weights; and what a wrong file gets."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from unic_pipe.pipeline.encoders import load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.catalogue import catalogue
from unic_pipe.pipeline.encoders.fetch import fetch_weights
from unic_pipe.pipeline.encoders.registry import REGISTRY
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import StageError, UserError

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
ARCHITECTURE = "vit_tiny_patch16_224"


def small_vit(classes: int = 0, size: int = 32, **more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(ARCHITECTURE, img_size=size, num_classes=classes, **SMALL, **more).eval()


def resolve(tmp_path: Path, encoder: str, size: int = 32, **fields: Any) -> Any:
    config = EncoderConfig(encoder=encoder, image_size=size, model_args=SMALL, **fields)
    return resolve_encoder("teacher", config, tmp_path, None)


@pytest.mark.parametrize(
    ("wrong", "guess"),
    [
        ("dbotft", "dbot-ft"),
        ("DINO", "dino"),
        ("efficientnet_lite1", "efficientnet-lite1"),
        ("metaclip", "metaclip-h"),
        ("weights/mine.pth", "checkpoint:weights/mine.pth"),
        ("timm:vit_tinny_patch16_224", "vit_tiny_patch16_224"),
        ("timm/vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("hf_hub:lab/small", "hf-hub:lab/small"),
    ],
)
def test_unknown_name_suggests_the_nearest(tmp_path: Path, wrong: str, guess: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {guess}"):
        resolve(tmp_path, wrong)


def test_unknown_name_lists_the_three_forms(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve(tmp_path, "nonsense!")
    for form in ("deit3", "timm:NAME", "checkpoint:PATH"):
        assert form in (caught.value.hint or "")


def test_missing_weights_name_file_place_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError) as caught:
        resolve_encoder("dino", EncoderConfig(), tmp_path / "weights", None)
    for part in ("vit_base_patch16_224.dino.safetensors", str(tmp_path / "weights"), str(tmp_path / "hub")):
        assert part in caught.value.message
    assert "unic-pipe teachers --fetch" in (caught.value.hint or "")


def test_weights_are_found_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--timm--vit_base_patch16_224.dino"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_file(small_vit().state_dict(), snapshot / "model.safetensors")
    for name in ("dino", "timm:vit_base_patch16_224.dino"):
        assert resolve(tmp_path, name).weights_path == snapshot / "model.safetensors"


def test_weights_dir_comes_before_the_python_package(tmp_path: Path) -> None:
    packaged = resolve_encoder("lite0", EncoderConfig(image_size=32), tmp_path, None)
    assert packaged.weights_path is not None
    assert packaged.weights_path.parent != tmp_path
    mine = tmp_path / REGISTRY["efficientnet-lite0"].files[0]
    mine.write_bytes(packaged.weights_path.read_bytes())
    found = resolve_encoder("lite0", EncoderConfig(image_size=32), tmp_path, None)
    assert found.weights_path == mine
    assert found.digest == packaged.digest


def test_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "absent", REGISTRY["efficientnet-lite0"].model_copy(update={"package": "not_here_1"}))
    with pytest.raises(UserError, match="not-here-1") as caught:
        resolve_encoder("absent", EncoderConfig(), tmp_path, None)
    assert caught.value.hint == "pip install not-here-1"


def test_timm_file_with_its_own_number_of_classes_loads_without_them(tmp_path: Path) -> None:
    model = small_vit(classes=7)
    save_file(model.state_dict(), tmp_path / f"{ARCHITECTURE}.augreg_in21k.safetensors")
    encoder = load_encoder(resolve(tmp_path, f"timm:{ARCHITECTURE}.augreg_in21k"))
    x_B3HW = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(x_B3HW).cls, model.forward_features(x_B3HW)[:, 0])
    assert not [key for key in encoder.model.state_dict() if key.startswith("head")]


@pytest.mark.parametrize("encoder", ["dino", f"timm:{ARCHITECTURE}.augreg_in21k"])
def test_position_embeddings_follow_the_image_size(tmp_path: Path, encoder: str) -> None:
    model = small_vit()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    large = load_encoder(resolve(tmp_path, encoder, 48, weights="weights.safetensors"))
    model.set_input_size((48, 48))
    x_B3HW = torch.rand(2, 3, 48, 48)
    assert large.definition.grid == (6, 6)
    torch.testing.assert_close(large(x_B3HW).patch, model.forward_features(x_B3HW)[:, 1:])


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone.", "_orig_mod."])
def test_wrappers_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{key}": value for key, value in small_vit().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save(small_vit().state_dict(), tmp_path / "plain.pth")
    x_B3HW = torch.rand(1, 3, 32, 32)
    wrapped, plain = (load_encoder(resolve(tmp_path, "ibot", weights=f"{n}.pth")) for n in ("wrapped", "plain"))
    assert torch.equal(wrapped(x_B3HW).cls, plain(x_B3HW).cls)


@pytest.mark.parametrize("encoder", ["dino", "deit3", f"checkpoint:{ARCHITECTURE}.pth"])
def test_a_file_of_another_model_lists_keys(tmp_path: Path, encoder: str) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / f"{ARCHITECTURE}.pth")
    checkpoint = encoder.startswith("checkpoint")
    fields: dict[str, Any] = {"architecture": ARCHITECTURE} if checkpoint else {"weights": f"{ARCHITECTURE}.pth"}
    with pytest.raises(UserError, match=r"missing: cls_token, .* more; unexpected: conv1\.weight, .* more") as caught:
        resolve(tmp_path, encoder, **fields)
    assert str(tmp_path) in caught.value.message


def test_a_file_of_another_width_names_the_shapes(tmp_path: Path) -> None:
    torch.save(small_vit().state_dict(), tmp_path / "narrow.pth")
    config = EncoderConfig(weights="narrow.pth", image_size=32, model_args={**SMALL, "embed_dim": 48})
    with pytest.raises(UserError, match=r"wrong shape: cls_token is \(1, 1, 24\), expected \(1, 1, 48\)"):
        resolve_encoder("dino", config, tmp_path, None)


def test_dbot_pretraining_file_says_what_it_is(tmp_path: Path) -> None:
    torch.save({"model": small_vit().state_dict()}, tmp_path / "84.5_dbot_base_pre.pth")
    with pytest.raises(UserError, match="no fc_norm, so it is the pretraining file") as caught:
        resolve(tmp_path, "dbot-ft", weights="84.5_dbot_base_pre.pth")
    assert "84.5_dbot_base_finetune.pth" in (caught.value.hint or "")


def test_checkpoint_needs_an_architecture_unless_it_names_one(tmp_path: Path) -> None:
    torch.save({"model": small_vit().state_dict()}, tmp_path / "anonymous.pth")
    with pytest.raises(UserError, match="does not say which architecture") as caught:
        resolve(tmp_path, "checkpoint:anonymous.pth")
    assert "architecture: " in (caught.value.hint or "")
    torch.save({"state_dict": small_vit().state_dict(), "arch": ARCHITECTURE}, tmp_path / "named.pth")
    named = resolve(tmp_path, "checkpoint:named.pth")
    given = resolve(tmp_path, "checkpoint:anonymous.pth", architecture=ARCHITECTURE)
    assert named.definition.architecture == given.definition.architecture == ARCHITECTURE
    x_B3HW = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_encoder(named)(x_B3HW).cls, load_encoder(given)(x_B3HW).cls)


def test_arguments_and_numpy_numbers_beside_the_weights_are_harmless(tmp_path: Path) -> None:
    extra = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "epoch": np.int64(3)}
    torch.save({"model": small_vit().state_dict(), **extra}, tmp_path / "trained.pth")
    assert resolve(tmp_path, "dino", weights="trained.pth").definition.cls_dim == 24


class Boom:
    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.function, ("echo code of the file has run",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "named"),
    [(Boom(print), "print"), (Boom(os.system), r"\w+\.system"), (Path("x"), r"pathlib\.\w+")],
    ids=["print", "system", "path"],
)
def test_pickles_with_other_classes_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: object, named: str, legacy: bool
) -> None:
    state = {"model": small_vit().state_dict(), "more": content}
    torch.save(state, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=f"refused: contains {named}"):
        resolve(tmp_path, "dino", weights="evil.pth")
    assert "has run" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "empty.pth", "text.pth"])
def test_damaged_files_are_user_errors(tmp_path: Path, name: str) -> None:
    torch.save(small_vit().state_dict(), tmp_path / "whole.pth")
    save_file(small_vit().state_dict(), tmp_path / "whole.safetensors")
    contents = {
        "cut.pth": (tmp_path / "whole.pth").read_bytes()[:5000],
        "cut.safetensors": (tmp_path / "whole.safetensors").read_bytes()[:5000],
        "empty.pth": b"",
        "text.pth": b"<html>Not found</html>",
    }
    (tmp_path / name).write_bytes(contents[name])
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        resolve(tmp_path, "dino", weights=name)


def test_image_size_that_is_no_multiple_of_the_patch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="30 is not a multiple of its patch size, 8"):
        resolve(tmp_path, f"timm:{ARCHITECTURE}", 30, weights="random:0")


def test_unknown_model_argument(tmp_path: Path) -> None:
    config = EncoderConfig(encoder=f"timm:{ARCHITECTURE}", weights="random:0", model_args={"dept": 2})
    with pytest.raises(UserError, match="dept"):
        resolve_encoder("x", config, tmp_path, None)


@pytest.mark.parametrize("arguments", [{"embed_dim": 0}, {"patch_size": 0}, {"act_layer": "nonsense"}])
def test_arguments_that_break_a_constructor_are_a_users_mistake(tmp_path: Path, arguments: dict[str, Any]) -> None:
    config = EncoderConfig(encoder="timm:test_vit", weights="random:0", model_args=arguments)
    with pytest.raises(UserError, match=f"timm cannot build test_vit with {next(iter(arguments))}="):
        resolve_encoder("x", config, tmp_path, None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model_type": "vit", "hidden_size": 64}, r"of transformers \(model_type: vit\) that names no architecture"),
        ({"architecture": "test_vit", "model_args": {"in_chans": 1}}, "has 1 input channel; images have 3"),
        (
            {"architecture": "test_vit", "input_size": [3, 160, 160], "mean": [124, 116, 104], "std": [58, 57, 57]},
            "are not of colours from 0 to 1",
        ),
        (
            {"architecture": "test_vit", "input_size": [3, 10**5, 10**5], "mean": [0.5] * 3, "std": [0.5] * 3},
            "have 1 to 16,384",
        ),
    ],
)
def test_configurations_of_others_say_what_is_wrong(tmp_path: Path, body: dict[str, object], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(body))
    (tmp_path / "model.safetensors").write_bytes(b"0")
    with pytest.raises(UserError, match=said):
        resolve_encoder("x", EncoderConfig(encoder=f"checkpoint:{tmp_path}"), tmp_path, None)


def test_replaced_weights_are_another_encoder_and_are_never_loaded_as_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    torch.save(small_vit().state_dict(), file)
    config = EncoderConfig(encoder="dino", weights="mine.pth", image_size=32, model_args=SMALL)
    first = resolve_encoder("mine", config, tmp_path, tmp_path)
    assert resolve_encoder("mine", config, tmp_path, tmp_path).digest == first.digest
    changed = {key: value + 1 for key, value in small_vit().state_dict().items()}
    torch.save(changed, file)
    with pytest.raises(StageError, match="changed while it was in use"):
        load_encoder(first)
    second = resolve_encoder("mine", config, tmp_path, tmp_path)
    assert second.definition.weights != first.definition.weights
    assert torch.equal(load_encoder(second).model.state_dict()["norm.bias"], changed["norm.bias"])


def test_known_answers_need_no_pytorch(tmp_path: Path) -> None:
    save_file(small_vit().state_dict(), tmp_path / f"{ARCHITECTURE}.augreg_in21k.safetensors")
    config = EncoderConfig(encoder=f"timm:{ARCHITECTURE}.augreg_in21k", image_size=32, model_args=SMALL)
    resolved = resolve_encoder("quick", config, tmp_path, tmp_path)
    program = (
        "import sys; from pathlib import Path; from unic_pipe.schemas.config import EncoderConfig;"
        "from unic_pipe.pipeline.encoders import resolve_encoder;"
        "config = EncoderConfig.model_validate_json(sys.argv[1]); here = Path(sys.argv[2]);"
        "print(resolve_encoder('quick', config, here, here).digest, {'torch', 'timm', 'zarr'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, config.model_dump_json(), str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert ran.stdout.split() == [resolved.digest, "set()"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema": "encoder-cache/99"}'])
def test_a_damaged_cache_of_answers_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    torch.save(small_vit().state_dict(), tmp_path / "mine.pth")
    config = EncoderConfig(encoder="dino", weights="mine.pth", image_size=32, model_args=SMALL)
    first = resolve_encoder("mine", config, tmp_path, tmp_path)
    (tmp_path / "runs" / "encoders.json").write_bytes(damage)
    assert resolve_encoder("mine", config, tmp_path, tmp_path).digest == first.digest


def test_fetch_downloads_once_and_whole(tmp_path: Path) -> None:
    origin = tmp_path / "origin.pth"
    torch.save({"model": small_vit().state_dict()}, origin)
    card = EncoderCard(
        name="test", architecture=ARCHITECTURE, image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        source="a file", files=("official.pth",), url=origin.as_uri(),
    )  # fmt: skip
    said: list[str] = []
    weights_dir = tmp_path / "weights"
    assert fetch_weights(card, weights_dir, said.append) == weights_dir / "official.pth"
    assert (weights_dir / "official.pth").read_bytes() == origin.read_bytes()
    assert fetch_weights(card, weights_dir, said.append) == weights_dir / "official.pth"
    assert len(said) == 1
    assert "licence: unknown" in said[0]


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({"hub_id": None, "url": "http://127.0.0.1:1/official.pth"}, "http://127.0.0.1:1/official.pth"),
        ({"hub_id": "timm/x"}, "http://127.0.0.1:1/timm/x/resolve/main/model.safetensors"),
    ],
)
def test_without_a_network_a_download_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    files = {"files": ("x.safetensors", "x.pth"), "hub_files": ("model.safetensors",)}
    card = REGISTRY["dino"].model_copy(update=files | changes)
    begun = time.monotonic()
    with pytest.raises(StageError, match=r"dino: 127\.0\.0\.1:1 cannot be reached \(.*refused") as caught:
        fetch_weights(card, tmp_path / "weights", lambda _: None)
    assert time.monotonic() - begun < 10
    name = f"x{Path(address).suffix}"
    assert caught.value.hint == f"Without a network, put {address} there by hand: {tmp_path / 'weights' / name}"


def test_weights_that_are_swapped_behind_its_back_are_read_after_what_the_error_says(tmp_path: Path) -> None:
    """Copied over with the time of the file before, as `cp -p` and `rsync -t` do: size and time say nothing."""
    file = tmp_path / "mine.safetensors"
    save_file(small_vit().state_dict(), file)
    time_before = file.stat().st_mtime_ns
    config = EncoderConfig(
        encoder="checkpoint:mine.safetensors", architecture=ARCHITECTURE, model_args=SMALL, image_size=32
    )
    before = resolve_encoder("mine", config, tmp_path, tmp_path)
    save_file({name: value + 1 for name, value in small_vit().state_dict().items()}, file)
    os.utime(file, ns=(time_before, time_before))
    again = resolve_encoder("mine", config, tmp_path, tmp_path)
    with pytest.raises(StageError, match="changed while it was in use") as caught:
        load_encoder(again)
    assert (caught.value.hint or "").startswith(f"touch {file}, then run the command again")
    file.touch()
    now = resolve_encoder("mine", config, tmp_path, tmp_path)
    assert now.definition.weights != before.definition.weights
    load_encoder(now)


def test_a_failed_download_leaves_nothing_and_says_where_to_put_the_file(tmp_path: Path) -> None:
    card = REGISTRY["ibot"].model_copy(update={"url": (tmp_path / "nothing.pth").as_uri()})
    with pytest.raises(StageError, match="download failed") as caught:
        fetch_weights(card, tmp_path / "weights", lambda _: None)
    assert str(tmp_path / "weights") in (caught.value.hint or "")
    assert list((tmp_path / "weights").iterdir()) == []


def test_catalogue_shows_named_and_configured_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.save(small_vit().state_dict(), tmp_path / "mine.pth")
    teachers = {
        "lite0": EncoderConfig(),
        "mine": EncoderConfig(encoder="checkpoint:mine.pth", architecture=ARCHITECTURE),
        "lost": EncoderConfig(encoder="checkpoint:lost.pth"),
    }
    rows = {row.name: row for row in catalogue(teachers, tmp_path, tmp_path)}
    assert set(rows) == {"lite0", "mine", "lost", *REGISTRY} - {"efficientnet-lite0"}
    assert rows["dino"].path is None
    assert rows["dino"].problem == "missing"
    assert (rows["dino"].licence, rows["metaclip-h"].licence) == ("Apache-2.0", "CC-BY-NC-4.0")
    assert rows["mine"].path == tmp_path / "mine.pth"
    assert rows["mine"].yaml == f"mine: {{encoder: checkpoint:mine.pth, architecture: {ARCHITECTURE}}}"
    assert "lost.pth" in (rows["lost"].problem or "")
    assert len(rows["lite0"].digest or "") == 64
