import hashlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.workspace.results import (
    current_record,
    dataset_digest,
    evaluation_digest,
    evaluation_folder,
    no_labels,
    result_key,
)
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import BenchmarkConfig, Config, DatasetConfig, EvaluateConfig, SamplesConfig
from unic_pipe.schemas.errors import DamagedError, StageError, UserError
from unic_pipe.schemas.evaluations import RESULT_COLUMNS, ResultDefinition, ResultRecord
from unic_pipe.schemas.probes import PROBES, PROTOCOL
from unic_pipe.stages.evaluate.features import Features
from unic_pipe.stages.evaluate.run import Job, evaluate, failures
from unic_pipe.stages.evaluate.tasks import Kept, Labelled

DIGITS = load_digits()
X = (DIGITS.data / 16).astype(np.float32)
Y = DIGITS.target.astype(np.int64)
CONFIG = Config(
    samples=SamplesConfig(datasets={"train": DatasetConfig(source="a"), "test": DatasetConfig(source="b")}),
    evaluate=EvaluateConfig(
        benchmarks={"digits": BenchmarkConfig(train="train", test="test")}, c_values=(0.01, 1.0), k_values=(10, 1000)
    ),
)


class Listener(SilentReporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def features(name, rows, noise=0.0, labels=None):
    x = X[rows] + noise * np.random.default_rng(0).normal(size=X[rows].shape).astype(np.float32)
    return Features(name, x, Y[rows] if labels is None else labels)


def jobs(encoder="dino", weights="weights 1", benchmark="digits", noise=0.0, test_labels=None, **names):
    """The probes of an encoder; `weights` is its identity."""
    made, kept = [], Kept()
    config = names.get("config", CONFIG).evaluate
    for probe in config.probes:
        definition = ResultDefinition(
            protocol=PROTOCOL,
            benchmark_train=sha(names.get("train", "train rows")),
            benchmark_test=sha(names.get("test", "test rows")),
            features_train=sha(f"train {weights}"),
            features_test=sha(f"test {weights}"),
            encoder=sha(weights),
            probe=probe,
            settings=PROBES[probe].settings(config),
            seed=0,
            seeds=config.seeds if probe == "logistic" and len(config.seeds) > 1 else (),
        )
        train = lambda: features("train", slice(0, 400), noise)  # noqa: E731
        test = lambda: features("test", slice(400, 600), noise, test_labels)  # noqa: E731
        load = Labelled(train, test, benchmark, encoder, definition, None, kept)
        made.append(Job(benchmark, encoder, "teacher", definition, load))
    return made


def forbidden():
    raise AssertionError("a fresh probe read its features")


def unread(all_jobs):
    return [loading(job, train=forbidden, test=forbidden) for job in all_jobs]


def loading(job, **sides):
    return replace(job, load=replace(job.load, **sides))


def run(workdir, all_jobs, stop=None, config=CONFIG):
    listener = Listener()
    benchmarks = {j.benchmark: (j.definition.benchmark_train, j.definition.benchmark_test) for j in all_jobs}
    folder = evaluation_folder(workdir, "main", evaluation_digest(config.evaluate, benchmarks))
    records = evaluate(workdir, folder, all_jobs, config.evaluate, listener, stop or Stop())
    return records, listener.lines


def table(workdir):
    return pq.read_table(workdir / "evaluations/main/results.parquet")


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_first_run_writes_records_a_table_and_a_pointer(tmp_path):
    records, _ = run(tmp_path, jobs())
    assert [r.status for r in records] == ["done", "done"]
    assert records[0].metrics["top1"] > 0.75
    assert records[0].chosen["c"] in (0.01, 1.0)
    assert records[1].message == "k = 1000: only 400 training samples, so all of them vote."
    rows = table(tmp_path).to_pylist()
    assert tuple(rows[0]) == RESULT_COLUMNS
    assert [(r["probe"], r["metric"]) for r in rows] == [
        ("knn", "top1_k10"), ("knn", "top1_k1000"), ("knn", "top5_k10"), ("knn", "top5_k1000"),
        ("logistic", "per_class"), ("logistic", "top1"),
    ]  # fmt: skip
    assert rows[-1]["value"] == records[0].metrics["top1"]
    assert rows[-1]["encoder_digest"] == sha("weights 1")
    assert rows[-1]["dataset_digest"] == dataset_digest(records[0].definition)
    assert (tmp_path / "evaluations/main").is_symlink()


def test_a_second_run_computes_nothing_changes_nothing_and_says_so(tmp_path):
    first, _ = run(tmp_path, jobs())
    before = tree(tmp_path / "evaluations")
    second, lines = run(tmp_path, unread(jobs()))
    assert second == first
    assert lines == ["evaluate: 2 of 2 probes are fresh: skipped."]
    assert tree(tmp_path / "evaluations") == before


def test_two_working_folders_hold_the_same_bytes(tmp_path):
    run(tmp_path / "a", jobs())
    run(tmp_path / "b", jobs())
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_changed_encoder_never_shows_old_scores(tmp_path):
    run(tmp_path, jobs("dino", "weights 1") + jobs("ibot", "weights 9"))
    fresh, lines = run(tmp_path, jobs("dino", "weights 2", noise=0.3) + unread(jobs("ibot", "weights 9")))
    assert lines[0] == "evaluate: 2 of 4 probes are fresh: skipped."
    digests = set(
        zip(table(tmp_path)["encoder"].to_pylist(), table(tmp_path)["encoder_digest"].to_pylist(), strict=True)
    )
    assert digests == {("dino", sha("weights 2")), ("ibot", sha("weights 9"))}
    assert fresh[0].definition.encoder == sha("weights 2")


def test_an_encoder_that_is_no_longer_asked_for_leaves_the_table(tmp_path):
    run(tmp_path, jobs("dino") + jobs("ibot", "weights 9"))
    run(tmp_path, unread(jobs("dino")))
    assert set(table(tmp_path)["encoder"].to_pylist()) == {"dino"}


def test_new_data_make_a_new_evaluation_beside_the_old(tmp_path):
    run(tmp_path, jobs())
    old = (tmp_path / "evaluations/main").resolve()
    before = tree(old)
    run(tmp_path, jobs(test="test rows, one label mended"))
    assert (tmp_path / "evaluations/main").resolve() != old
    assert tree(old) == before


def test_another_benchmark_takes_over_what_was_computed(tmp_path):
    first, _ = run(tmp_path, jobs())
    records, lines = run(tmp_path, unread(jobs()) + jobs("dino", benchmark="shifted", noise=0.5, test="shifted rows"))
    assert lines[0] == "evaluate: 2 of 4 probes are fresh: skipped."
    assert records[:2] == first
    assert set(table(tmp_path)["benchmark"].to_pylist()) == {"digits", "shifted"}


def test_two_names_of_one_encoder_each_have_their_results(tmp_path):
    run(tmp_path, jobs("dino"))
    records, _ = run(tmp_path, unread(jobs("dino")) + unread(jobs("alias")))
    assert [r.encoder for r in records] == ["dino", "dino", "alias", "alias"]
    assert records[0].metrics == records[2].metrics
    assert set(table(tmp_path)["encoder"].to_pylist()) == {"dino", "alias"}


def test_test_labels_never_reach_the_search(tmp_path):
    """Scrambled test labels change the score, and nothing that was chosen."""
    scrambled = np.random.default_rng(1).permutation(Y[400:600])
    honest, _ = run(tmp_path / "a", jobs())
    other, _ = run(tmp_path / "b", jobs(test_labels=scrambled))
    assert other[0].chosen == honest[0].chosen
    assert other[0].metrics["top1"] < 0.3 < honest[0].metrics["top1"]


@pytest.mark.parametrize("search", ["fast", "optuna"])
@pytest.mark.parametrize("probe", ["logistic", "sgd"])
def test_a_fit_is_bit_identical_whatever_the_test_labels_say(tmp_path, monkeypatch, probe, search):
    """Not only the choice: the weights too."""
    config = with_evaluate(probes=(probe,), search=search, trials=2, sgd_epochs=2, c_values=None, c_range=(1e-2, 1.0))
    fitted = []

    def remember(fit, task):
        fitted.append(fit.scores(X[:50]))
        return np.zeros(len(task.test_MD), dtype=np.int64)

    monkeypatch.setattr("unic_pipe.stages.evaluate.linear._predict", remember)
    for name, labels in (("a", None), ("b", np.full(200, 3)), ("c", np.random.default_rng(1).permutation(Y[400:600]))):
        run(tmp_path / name, jobs(test_labels=labels, config=config), config=config)
    assert (fitted[0] == fitted[1]).all()
    assert (fitted[0] == fitted[2]).all()


def with_evaluate(**settings):
    return CONFIG.model_copy(update={"evaluate": CONFIG.evaluate.model_copy(update=settings)})


def test_several_seeds_give_a_mean_a_spread_and_each_seeds_row(tmp_path):
    config = with_evaluate(probes=("logistic",), seeds=(0, 1, 2))
    records, _ = run(tmp_path, jobs(config=config), config=config)
    each = [scores["top1"] for scores in records[0].per_seed.values()]
    assert list(records[0].per_seed) == ["0", "1", "2"]
    assert records[0].metrics["top1"] == pytest.approx(np.mean(each))
    assert records[0].spread["top1"] == pytest.approx(np.std(each, ddof=1))
    rows = [(r["metric"], r["seed"]) for r in table(tmp_path).to_pylist() if r["metric"].startswith("top1")]
    assert rows == [("top1", None), ("top1", 0), ("top1", 1), ("top1", 2), ("top1_spread", None)]
    again, lines = run(tmp_path, unread(jobs(config=config)), config=config)
    assert again == records
    assert lines == ["evaluate: 1 of 1 probes are fresh: skipped."]


def test_every_probe_runs_and_classes_have_a_table(tmp_path):
    config = with_evaluate(probes=("logistic", "sgd", "knn", "fewshot"), sgd_epochs=3, shots=(1, 5), draws=3)
    records, _ = run(tmp_path, jobs(config=config), config=config)
    assert [r.status for r in records] == ["done"] * 4
    shots = records[3].metrics
    assert shots["top1_logistic_5shot"] > shots["top1_logistic_1shot"] > 0.3
    assert records[3].spread["top1_centroid_1shot"] > 0
    classes = pq.read_table(tmp_path / "evaluations/main/classes.parquet").to_pylist()
    assert {r["probe"] for r in classes} == {"logistic", "sgd", "knn"}
    own = [r for r in classes if r["probe"] == "logistic"]
    assert [r["class"] for r in own] == list(range(10))
    assert np.average([r["accuracy"] for r in own], weights=[r["samples"] for r in own]) == pytest.approx(
        records[0].metrics["top1"]
    )
    assert np.mean([r["accuracy"] for r in own]) == pytest.approx(records[0].metrics["per_class"])


def test_a_failed_probe_is_recorded_the_others_go_on_and_it_is_retried(tmp_path):
    def unlabelled():
        raise no_labels("test")

    broken = [loading(job, test=unlabelled) for job in jobs("ibot", "weights 9")]
    records, lines = run(tmp_path, broken + jobs("dino"))
    assert [r.status for r in records] == ["failed", "failed", "done", "done"]
    assert records[0].message.startswith("Dataset test has no labels to evaluate with.")
    assert any("no labels" in line for line in lines)
    assert set(table(tmp_path)["encoder"].to_pylist()) == {"dino"}
    error = failures(records)
    assert isinstance(error, StageError)
    assert "2 of 4 probes failed; the first, ibot on digits: Dataset test has no labels" in error.message
    mended, _ = run(tmp_path, jobs("ibot", "weights 9") + unread(jobs("dino")))
    assert [r.status for r in mended] == ["done"] * 4
    assert failures(mended) is None


def test_equal_train_and_test_data_are_said(tmp_path):
    records, _ = run(tmp_path, jobs(train="rows", test="rows"))
    assert all(r.message.startswith("Train and test are the same data") for r in records)


def test_a_stop_ends_between_probes_and_keeps_what_is_done(tmp_path):
    stop = Stop()
    first, second = jobs()

    def load():
        stop.request()
        return first.load.test()

    records, _ = run(tmp_path, [loading(first, test=load), second], stop)
    assert [r.definition.probe for r in records] == ["logistic"]
    rest, lines = run(tmp_path, [loading(first, test=forbidden, train=forbidden), second])
    assert lines[0] == "evaluate: 1 of 2 probes are fresh: skipped."
    assert len(rest) == 2


def test_a_damaged_record_is_an_error_and_without_it_the_same_is_computed_again(tmp_path):
    run(tmp_path, jobs())
    before = tree(tmp_path / "evaluations")
    first = jobs()[0]
    path = tmp_path / "evaluations/main" / result_key("digits", "dino", first.definition)
    for damaged in (path.read_bytes()[:100], path.read_bytes().replace(b"0.", b"1.", 1)):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=path.name) as caught:
            current_record(path.parents[1], "digits", "dino", first.definition)
        assert "unic-pipe verify" in caught.value.hint
        with pytest.raises(DamagedError, match=path.name):
            run(tmp_path, jobs())
    path.unlink()
    run(tmp_path, jobs())
    assert tree(tmp_path / "evaluations") == before


def test_a_record_survives_the_round_trip_with_its_digest(tmp_path):
    records, _ = run(tmp_path, jobs())
    for record in records:
        again = ResultRecord.from_bytes(record.to_bytes(), "memory")
        assert again == record
        assert digest_of(again.definition) == again.digest


def test_no_benchmarks(tmp_path):
    with pytest.raises(UserError, match="Nothing to evaluate"):
        run(tmp_path, [])
