"""The registry of named benchmarks, what a configuration may say about them, and the command that shows them."""

import functools
import http.server
import json
import tarfile
import threading

import numpy as np
import pytest

from unic_pipe.cli.errors import guarded
from unic_pipe.cli.main import app
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.evaluation_plans import benchmark_pairs
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import benchmark_digest, probes_of, result_definition
from unic_pipe.pipeline.workspace.status import benchmark_datasets
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.benchmarks import cards
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.evaluate.checks import UNSEEN, check_task
from unic_pipe.stages.evaluate.features import Features
from unic_pipe.stages.evaluate.linear import predict_among
from unic_pipe.stages.evaluate.logistic import Probe
from unic_pipe.stages.evaluate.scoring import accuracy
from unic_pipe.stages.indexing import index


def command(*arguments):
    return guarded(lambda: app(args=[*arguments], prog_name="unic-pipe", standalone_mode=False), False)


def test_the_papers_counts():
    sizes = {name: (card.train, card.test) for name, card in cards().items()}
    assert sizes == {
        "in1k": (1281167, 50000), "in-v2": (None, 10000), "in-r": (None, 30000), "in-sketch": (None, 50889),
        "in-a": (None, 7500), "objectnet": (None, 18574), "cog-l1": (1118804, 50000), "cog-l2": (1115788, 50000),
        "cog-l3": (1095203, 50000), "cog-l4": (1107128, 50000), "cog-l5": (1091654, 50000), "inat2018": (437513, 24426),
        "inat2019": (265213, 3030), "aircraft": (6667, 3333), "cars196": (8144, 8041), "dtd": (3760, 1880),
        "eurosat": (18900, 8100), "flowers": (2040, 6149), "pets": (3680, 3669), "food101": (75750, 25250),
        "sun397": (19850, 19850), "ade20k": (20210, 2000), "nyud": (795, 654),
    }  # fmt: skip


def test_every_entry_is_complete():
    from unic_pipe.pipeline.benchmarks.readers import READERS

    for name, card in cards().items():
        assert card.source.startswith("https://"), name
        assert card.licence, name
        assert card.paper, name
        assert card.dense or card.reader in READERS, name
        assert (card.train is None) == (card.kind == "transfer") == (not card.needs_train), name
        assert (card.metric in ("miou", "rmse")) == card.dense, name
    assert {card.axis for card in cards().values()} == {
        "IN-1K", "IN-v2", "domain shift", "CoG", "long-tail", "fine-grained", "segmentation", "depth",
    }  # fmt: skip
    large = {name for name, card in cards().items() if card.classifier == "sgd" and card.kind == "probe"}
    assert large == {"in1k", "inat2018", "inat2019", *(f"cog-l{level}" for level in range(1, 6))}


@pytest.fixture
def configured(tmp_path):
    """Loads a configuration with this `evaluate:` section."""

    def load(evaluate, datasets="{}"):
        (tmp_path / "unic-pipe.yaml").write_text(f"samples: {{datasets: {datasets}}}\nevaluate: {evaluate}\n")
        return load_workspace(tmp_path)

    return load


def test_names_stand_for_datasets_and_their_pair(configured):
    config = configured("{benchmarks: {dtd: {root: /data/dtd}, pets: {}, in-r: {}}, root: /data}").config
    found = {name: (d.source, d.reader) for name, d in config.samples.datasets.items()}
    assert found == {
        "dtd-train": ("/data/dtd", "dtd/train"), "dtd-test": ("/data/dtd", "dtd/test"),
        "pets-train": ("/data", "pets/train"), "pets-test": ("/data", "pets/test"),
        "in1k-train": ("/data", "in1k/train"), "in-r-test": ("/data", "in-r/test"),
    }  # fmt: skip
    pair = config.evaluate.benchmarks["in-r"]
    assert (pair.train, pair.test) == ("in1k-train", "in-r-test")
    assert probes_of(config.evaluate, "dtd") == ("logistic", "knn")
    assert probes_of(config.evaluate, "in-r") == ("sgd",)


def test_a_list_of_names_is_enough(configured):
    listed = configured("{benchmarks: [dtd, pets]}").config
    assert listed == configured("{benchmarks: {dtd: {}, pets: {}}}").config


def test_tests_with_imagenets_probe_share_the_users_imagenet(configured):
    datasets = "{train: {source: a}, val: {source: b}}"
    config = configured("{benchmarks: {in1k: {train: train, test: val}, in-a: {}}}", datasets).config
    assert config.evaluate.benchmarks["in-a"].train == "train"
    assert set(config.samples.datasets) == {"train", "val", "in-a-test"}


def test_where_benchmarks_are_changes_no_identity(configured):
    roots = "{benchmarks: [dtd], root: %s}"
    one, two = (configured(roots % root).config for root in ("/a", "/b"))
    assert one.evaluate.model_dump(exclude={"root"}) == two.evaluate.model_dump(exclude={"root"})


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ("{benchmarks: [dtdd]}", "benchmarks.dtdd: no benchmark of the registry has this name, and your own need"),
        ("{benchmarks: {mine: {train: a, test: b, root: x}}}", "benchmarks.mine.root: only for benchmarks of the registry"),
        ("{benchmarks: {mine: {train: a}}}", "benchmarks.mine.test: missing"),
        ("{benchmarks: {dtd: {train: nothing}}}", "benchmarks.dtd.train: no dataset is named 'nothing'"),
        ("{benchmarks: [ade20k]}", "benchmarks.ade20k: a segmentation benchmark"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(configured, evaluate, message):
    with pytest.raises(UserError) as error:
        configured(evaluate, "{a: {source: a}, b: {source: b}}")
    assert f"line 2: evaluate.{message}" in error.value.message


@pytest.mark.parametrize(
    ("reader", "message"),
    [("dtd/val", "write dtd/train or"), ("in-r/train", "no training set"), ("dtdd/train", "did you mean dtd")],
)  # fmt: skip
def test_readers_that_do_not_exist(configured, reader, message):
    with pytest.raises(UserError, match=message):
        configured("{}", f"{{train: {{source: x, reader: {reader}}}}}")


def test_a_dataset_of_the_same_name(configured):
    with pytest.raises(UserError, match="has the name that benchmark dtd needs"):
        configured("{benchmarks: [dtd]}", "{dtd-train: {source: x}}")


MINE = """\
    mine-train: {source: mine/train}
    mine-test: {source: "mine/test"}
evaluate:
  benchmarks: {mine: {train: mine-train, test: mine-test}}
"""


@pytest.mark.parametrize("kind", ["tars", "folders"])
def test_data_of_your_own_are_a_benchmark_with_four_lines(tmp_path, picture, write_tar, kind):
    assert len(MINE.splitlines()) == 4
    (tmp_path / "unic-pipe.yaml").write_text("samples:\n  datasets:\n" + MINE)
    for split in ("train", "test"):
        members = [(f"{c}/{i}", picture(10 * c + i)) for c in (0, 1) for i in range(3)]
        if kind == "tars":
            pairs = [(f"{name}.png".replace("/", "_"), data) for name, data in members]
            labels = [(f"{name}.cls".replace("/", "_"), name[0].encode()) for name, _ in members]
            write_tar(
                tmp_path / f"mine/{split}/{split}-0.tar", [m for pair in zip(pairs, labels, strict=True) for m in pair]
            )
        for name, data in members if kind == "folders" else []:
            (tmp_path / f"mine/{split}/{name}.png").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"mine/{split}/{name}.png").write_bytes(data)
    inventory = Inventory(load_workspace(tmp_path))
    index(inventory, benchmark_datasets(inventory), SilentReporter(), Stop())
    pairs, skipped = benchmark_pairs(inventory)
    assert skipped == {}
    assert (pairs["mine"].train.manifest.rows, pairs["mine"].test.manifest.rows, pairs["mine"].asked) == (6, 6, None)


def test_which_classes_are_asked_is_part_of_a_results_identity(tmp_path, picture):
    (tmp_path / "unic-pipe.yaml").write_text("samples:\n  datasets:\n" + MINE)
    for split in ("train", "test"):
        for name in ("0/a", "0/b", "1/c"):
            (tmp_path / f"mine/{split}/{name}.png").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"mine/{split}/{name}.png").write_bytes(picture(len(name)))
    inventory = Inventory(load_workspace(tmp_path))
    index(inventory, benchmark_datasets(inventory), SilentReporter(), Stop())
    pair = benchmark_pairs(inventory)[0]["mine"]
    make = functools.partial(
        result_definition, inventory.config.evaluate, "logistic", train=pair.train.manifest, test=pair.test.manifest,
        features_train="a" * 64, features_test="b" * 64, encoder="c" * 64,
    )  # fmt: skip
    assert len({digest_of(make(asked=asked)) for asked in (None, (0, 1), (0, -1), (0, 1))}) == 3
    assert make().benchmark_train == benchmark_digest(pair.train.manifest)


def sides(asked_labels):
    """Training samples of four classes along four axes, and test samples between them."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    train = (4 * np.eye(4)[labels] + random.normal(0, 0.3, (48, 4))).astype(np.float32)
    test = np.array([[3, 2, 0, 0], [0, 3, 2, 0], [0, 0, 3, 2], [2, 0, 0, 3]], np.float32)
    return Features("train", train, labels.astype(np.int64)), Features("test", test, np.array(asked_labels))


def test_only_the_classes_that_are_asked_can_be_answered():
    # Classes 1 and 3 of the probe are the test set's 0 and 1; all four test samples are nearest to one class and next
    # to another, and the answer is the nearest among those that are asked.
    train, test = sides([0, 0, 1, 1])
    task = check_task(train, test, (-1, 0, -1, 1))
    probe = Probe(task.train_ND, task.train_labels_N)
    probe.fit(1.0)
    assert task.counts_as_C is not None
    predicted = predict_among(probe, task.test_MD, task.counts_as_C)
    assert predicted.tolist() == [0, 0, 1, 1]
    assert accuracy(predicted, task.test_labels_M, task.test_classes_M) == {"top1": 1.0, "per_class": 1.0}


def test_two_classes_that_count_as_one():
    train, test = sides([5, 5, 8, 8])
    task = check_task(train, test, (5, 5, 8, 8))
    probe = Probe(task.train_ND, task.train_labels_N)
    probe.fit(1.0)
    assert task.counts_as_C is not None
    assert predict_among(probe, task.test_MD, task.counts_as_C).tolist() == task.test_labels_M.tolist() == [5, 5, 8, 8]


def test_test_classes_that_nothing_counts_as_are_counted_as_wrong_and_said():
    train, test = sides([0, 1, 2, 2])
    task = check_task(train, test, (0, 1, -1, -1))
    assert task.test_labels_M.tolist() == [0, 1, UNSEEN, UNSEEN]
    assert "2 of 4 samples of test belong to 1 class that training never shows" in task.remarks[0]


def test_logits_of_two_classes_have_two_columns():
    random = np.random.default_rng(1)
    x = random.normal(size=(20, 3)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(np.int64)
    probe = Probe(x, labels)
    probe.fit(1.0)
    assert (probe.scores(x).argmax(axis=1) == probe.predict(x)).all()


def test_the_command_shows_all_and_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for need in ("labels/train1.txt", "labels/val1.txt", "labels/test1.txt", "images/a.jpg"):
        (tmp_path / "elsewhere/dtd" / need).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere/dtd" / need).write_text("")
    (tmp_path / "unic-pipe.yaml").write_text(
        "samples: {datasets: {}}\nevaluate: {benchmarks: [dtd, pets], root: elsewhere}\n"
    )
    assert command("benchmarks", "--json") == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["benchmarks"]}
    assert found.keys() == cards().keys()
    assert found["dtd"]["here"]
    assert found["dtd"]["folder"] == str(tmp_path / "elsewhere/dtd")
    assert found["pets"]["configured"]
    assert found["pets"]["missing"] == {
        "train": ["annotations/trainval.txt", "images"],
        "test": ["annotations/test.txt", "images"],
    }
    assert command("benchmarks") == 0
    shown = capsys.readouterr().out
    assert "annotations.tar.gz" in shown
    assert command("benchmarks", "in-q") == 2
    assert "did you mean in-" in capsys.readouterr().err


def test_what_torchvision_downloads_is_found(tmp_path, monkeypatch, capsys, picture):
    """DTD's archive in miniature from a server of this machine, through torchvision's own download."""
    from torchvision.datasets import DTD

    for name in ("labels/train1.txt", "labels/val1.txt", "labels/test1.txt"):
        (tmp_path / "served/dtd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "served/dtd" / name).write_text("a/a.jpg\n")
    (tmp_path / "served/dtd/images/a").mkdir(parents=True)
    (tmp_path / "served/dtd/images/a/a.jpg").write_bytes(picture(1, "JPEG"))
    with tarfile.open(tmp_path / "served/dtd-r1.0.1.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "served/dtd", "dtd")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(DTD, "_URL", f"http://127.0.0.1:{server.server_port}/dtd-r1.0.1.tar.gz")
    monkeypatch.setattr(DTD, "_MD5", None)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    try:
        assert command("benchmarks", "dtd", "--download", "--json") == 0
        assert json.loads(capsys.readouterr().out)["benchmarks"][0]["folder"].endswith("benchmarks/dtd/dtd")
    finally:
        server.shutdown()
        server.server_close()
    assert command("benchmarks", "dtd", "--download") == 0
    assert "nothing is missing" in capsys.readouterr().err
    assert command("benchmarks", "--download") == 2
    assert command("benchmarks", "cars196", "--download") == 2
    assert "no download that a program may use" in capsys.readouterr().err
