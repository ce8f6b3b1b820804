import subprocess
import sys

import pytest

from unic_pipe.pipeline.workspace.results import benchmark_digest, evaluation_digest, result_definition
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import EvaluateConfig
from unic_pipe.schemas.samples import DatasetManifest, Segment


def manifest(name, *segments):
    """A dataset whose segments are (first row, rows digest letter, labels digest letter)."""
    return DatasetManifest(
        name=name, source="x", layout="tars", block_rows=256, classes=None, labelled=True, permuted=False,
        segments=tuple(
            Segment(
                file=f"segment-{i:03}.parquet", first_row=first, rows=256, rows_digest=rows * 64,
                labels_digest=labels * 64, file_digest="0" * 32, shards=(),
            )
            for i, (first, rows, labels) in enumerate(segments)
        ),
    )  # fmt: skip


TRAIN, TEST = manifest("train", (0, "a", "b")), manifest("test", (0, "c", "d"))
PLAIN = EvaluateConfig()


def digest(config=PLAIN, probe="logistic", train=TRAIN, test=TEST, features_train="1" * 64):
    definition = result_definition(
        config, probe, train=train, test=test, features_train=features_train, features_test="2" * 64, encoder="3" * 64
    )
    return digest_of(definition)


@pytest.mark.parametrize(
    "change",
    [
        {"train": manifest("train", (0, "a", "e"))},  # a label changed
        {"train": manifest("train", (0, "e", "b"))},  # a row changed
        {"train": manifest("train", (0, "a", "b"), (256, "e", "f"))},  # rows were added
        {"features_train": "4" * 64},
        {"config": EvaluateConfig(c_values=(1.0,))},
        {"config": EvaluateConfig(validation_fraction=0.3)},
        {"config": EvaluateConfig(seeds=(1,))},
        {"config": EvaluateConfig(seeds=(0, 1))},
        {"config": EvaluateConfig(search="optuna")},
        {"config": EvaluateConfig(c_range=(1e-3, 1.0))},
        {"probe": "knn"},
    ],
)
def test_what_a_result_depends_on_changes_its_digest(change):
    assert digest(**change) != digest()


@pytest.mark.parametrize(
    "change",
    [
        {"train": manifest("renamed", (0, "a", "b"))},
        {"config": EvaluateConfig(k_values=(5,))},  # of the other probe
        {"config": EvaluateConfig(probes=("logistic",), baseline=False)},
        {"config": EvaluateConfig(sgd_epochs=3, shots=(1,), draws=2, trials=7)},  # of other probes and searches
    ],
)
def test_what_it_does_not_depend_on_leaves_it(change):
    assert digest(**change) == digest()


def test_c_values_do_not_touch_knn():
    assert digest(EvaluateConfig(c_values=(1.0,)), "knn") == digest(PLAIN, "knn")
    assert digest(EvaluateConfig(k_values=(5,)), "knn") != digest(PLAIN, "knn")
    assert digest(EvaluateConfig(seeds=(3,)), "knn") == digest(PLAIN, "knn")  # k-NN draws nothing


def test_an_evaluation_is_named_by_its_settings_and_data():
    pair = (benchmark_digest(TRAIN), benchmark_digest(TEST))
    one = evaluation_digest(PLAIN, {"digits": pair})
    assert one == evaluation_digest(EvaluateConfig(baseline=False), {"digits": pair})
    assert one != evaluation_digest(PLAIN, {"digits": pair[::-1]})
    assert one != evaluation_digest(PLAIN, {"digits": pair, "shifted": pair})
    assert one != evaluation_digest(EvaluateConfig(k_values=(1,)), {"digits": pair})
    assert evaluation_digest(PLAIN, {"a": pair, "b": pair}) == evaluation_digest(PLAIN, {"b": pair, "a": pair})


def test_planning_imports_nothing_heavy():
    heavy = ("torch", "sklearn", "zarr", "timm")
    code = f"import sys, unic_pipe.pipeline.workspace.results; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
