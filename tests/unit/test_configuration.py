"""What a user meets when `unic-pipe.yaml` is read: values as written, and every mistake at once with its line."""

from __future__ import annotations

import pytest
from builders import feature_manifest, features

from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.unmeant import remarks
from unic_pipe.schemas.config import StudentConfig, reference_problems
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.demo.config import write_config

BASE = "samples: {datasets: {train: {source: 'train-*.tar'}}}\n"


@pytest.fixture
def load(tmp_path):
    def read(text, *overrides):
        (tmp_path / "unic-pipe.yaml").write_text(text)
        return load_workspace(tmp_path / "unic-pipe.yaml", overrides).config

    return read


@pytest.fixture
def mistakes(load):
    """The lines of the error that a configuration gets."""

    def read(text, *overrides):
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        return [line.strip() for line in str(caught.value).splitlines()]

    return read


def test_a_minimal_file_gets_the_paper_s_defaults_and_its_folder(tmp_path, monkeypatch):
    (tmp_path / "unic-pipe.yaml").write_text(BASE + "weights_dir: w\nstudents: {main: {}}\n")
    monkeypatch.chdir(tmp_path)
    workspace = load_workspace()
    assert workspace.folder == tmp_path
    assert workspace.weights_dir == tmp_path / "w"
    assert workspace.roots == (tmp_path,)
    assert workspace.config.students["main"] == StudentConfig()
    assert load_workspace(tmp_path) == workspace


def test_the_demo_s_file_is_valid_and_a_changed_one_is_kept(tmp_path):
    assert set(load_workspace(write_config(tmp_path)).config.students) == {"student"}
    (tmp_path / "unic-pipe.yaml").write_text(BASE)
    assert load_workspace(write_config(tmp_path)).config.students == {}


def test_relative_roots_start_at_the_file_and_absolute_ones_stay(tmp_path):
    (tmp_path / "unic-pipe.yaml").write_text("samples: {roots: [data, /mnt/x], datasets: {}}\n")
    assert [str(r) for r in load_workspace(tmp_path).roots] == [str(tmp_path / "data"), "/mnt/x"]


def test_numbers_and_words_are_read_as_yaml_1_2(load):
    text = BASE + (
        "weights_dir: yes\nteachers: {on: {weights: off}}\n"
        "students: {s: {optimizer: {lr: 3e-4, weight_decay: 1e-2, min_lr: 1E-6}, seed: 010}}\n"
    )
    config = load(text)
    assert config.students["s"].optimizer.lr == 0.0003
    assert config.students["s"].optimizer.weight_decay == 0.01
    assert config.students["s"].optimizer.min_lr == 1e-6
    assert config.students["s"].seed == 10
    assert (config.weights_dir, config.teachers["on"].weights) == ("yes", "off")


def test_words_are_not_booleans(mistakes):
    assert "line 2: compute.tf32: expected true or false, found 'yes'" in mistakes(BASE + "compute: {tf32: yes}\n")


def test_all_mistakes_are_named_at_once_with_their_lines(mistakes):
    text = """\
samples:
  datasets:
    train: {source: 3}
    val: {sourc: "a"}
  roots: data
  max_bad_fraction: 2
views:
  recipe: {crop: middle, flips: 1}
  count: 1.5
teachers:
  "bad name": {}
  dino: {model_args: {depth: [1]}, mean: [1, 2]}
students:
  s:
    ladder: {blocks: [1, x]}
    optimizer: {lr: -1, epochs: 0}
    dtype: fp16
    teachers: dino
evaluate:
  probes: [linear]
  benchmarks:
    b: {train: x}
cach: {}
"""
    head, *lines = mistakes(text)
    assert head.endswith("unic-pipe.yaml has 20 problems:")
    assert lines == [
        "line 3: samples.datasets.train.source: expected a text, found 3",
        "line 4: samples.datasets.val.sourc: unknown field; did you mean source?",
        "line 4: samples.datasets.val.source: missing",
        "line 5: samples.roots: expected a list, found 'data'",
        "line 6: samples.max_bad_fraction: must be less than or equal to 1, found 2",
        "line 8: views.recipe.crop: expected 'random' or 'center', found 'middle'",
        "line 8: views.recipe.flips: unknown field; did you mean flip?",
        "line 9: views.count: expected a whole number, found 1.5",
        "line 11: teachers.bad name: not a usable name: letters, digits and . _ + - (the first a letter or digit)",
        "line 12: teachers.dino.mean.2: missing",
        "line 12: teachers.dino.model_args.depth: expected a number, a text, true or false",
        "line 15: students.s.ladder.blocks.1: expected a whole number, found 'x'",
        "line 16: students.s.optimizer.epochs: must be greater than or equal to 1, found 0",
        "line 16: students.s.optimizer.lr: must be greater than 0, found -1",
        "line 17: students.s.dtype: expected 'float32' or 'bfloat16', found 'fp16'",
        "line 18: students.s.teachers: expected a list, found 'dino'",
        "line 20: evaluate.probes.0: expected 'logistic', 'sgd', 'knn' or 'fewshot', found 'linear'",
        "line 22: evaluate.benchmarks.b.test: missing",
        "line 22: evaluate.benchmarks.b.train: no dataset is named 'x' (there are: train, val)",
        "line 23: cach: unknown field; did you mean cache?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ladder: {blocks: some}", "ladder.blocks: expected 'all' or 'last' or a list, found 'some'"),
        ("ladder: [1]", "ladder: expected `key: value` fields"),
        ("ladder:", "ladder: expected `key: value` fields, found nothing (write {} for none)"),
        ("mean: [0, 0, 0, 0]", "mean: expected 3 values"),
        ("drop_path: .inf", "drop_path: must be a finite number, found inf"),
        ("streams: 3", "optimizer.batch: not a multiple of streams (3)"),
        ("sed: 1", "sed: unknown field; did you mean seed?"),
        ("whatever: 1", "whatever: unknown field (there are: architecture, model_args, "),
    ],
)
def test_one_mistake_is_one_line(mistakes, text, expected):
    head, *lines = mistakes(BASE + f"students:\n  s:\n    {text}\n")
    assert head.endswith("has 1 problem:")
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_recipe_is_checked_by_name_and_by_value(mistakes):
    assert mistakes(BASE + "views: {recipe: gentel}\n")[1] == (
        "line 2: views.recipe: no view recipe has this name; did you mean gentle?"
    )
    assert "expected a text or `key: value` fields, found 3" in mistakes(BASE + "views: {recipe: 3}\n")[1]
    [_, line] = mistakes(BASE + "views:\n  recipe: {scale: [1, 0.5], blur_kernel: 8}\n")
    assert line.startswith(
        "line 3: views.recipe: scale: (1.0, 0.5) is not a rising range between 0 and 1; blur_kernel: 8 is"
    )


def test_names_that_nothing_has_are_found_wherever_they_are_used(mistakes):
    text = BASE + (
        "teachers: {dbot-ft: {}}\n"
        "students: {s: {dataset: trian, teachers: [dbotft]}}\n"
        "distill: {validation: val}\n"
        "evaluate: {benchmarks: {b: {train: train, test: tset}}}\n"
    )
    assert mistakes(text)[1:] == [
        "line 3: students.s.dataset: no dataset is named 'trian'; did you mean train?",
        "line 3: students.s.teachers.0: no teacher is named 'dbotft'; did you mean dbot-ft?",
        "line 4: distill.validation: no dataset is named 'val' (there are: train)",
        "line 5: evaluate.benchmarks.b.test: no dataset is named 'tset' (there are: train)",
    ]


def test_a_student_s_default_dataset_has_to_exist_too(mistakes):
    assert mistakes("samples: {datasets: {imagenet: {source: a}}}\nstudents:\n  s: {}\n")[1] == (
        "line 3: students.s.dataset: no dataset is named 'train' (there are: imagenet)"
    )


def test_names_are_searched_in_a_tree_of_any_shape():
    assert reference_problems({"students": [1], "samples": None, "distill": {"validation": 3}}) == []
    assert reference_problems("text") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BASE + "views: {count: 1, count: 2}\n", "line 2: found duplicate key"),
        (BASE + "views: [1\n", "line 3: expected ',' or ']'"),
        (BASE + "\tviews: 1\n", "line 2: found character '\\t'"),
        (BASE + "---\nviews: {}\n", "line 2: but found another document"),
        ("- a\n", "expected `key: value` lines"),
        ("", "expected `key: value` lines"),
        ("just words\n", "expected `key: value` lines"),
    ],
)
def test_a_file_that_is_not_yaml_says_where(mistakes, text, expected):
    assert expected in mistakes(text)[0]


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    (tmp_path / "unic-pipe.yaml").write_bytes(b"samples: \xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 9\)"):
        load_workspace(tmp_path)
    with pytest.raises(UserError, match=r"(?s)no such file.*unic-pipe init --data PATH"):
        load_workspace(tmp_path / "other.yaml")


def test_overrides_replace_values_at_any_depth(load):
    config = load(
        BASE + "students: {s: {optimizer: {epochs: 5}}}\nteachers: {a: {}, b: {}}\n",
        "students.s.optimizer.epochs=7",
        "students.s.teachers=[a, b]",
        "students.s.ladder.hidden=64",
        "compute.tf32=true",
        "weights_dir=x=y",
        "views={recipe: center, count: 2}",
        "cache.codec = int8",
    )
    student = config.students["s"]
    assert (student.optimizer.epochs, student.teachers, student.ladder.hidden) == (7, ("a", "b"), 64)
    assert (config.compute.tf32, config.weights_dir, config.views.recipe, config.views.count) == (
        True,
        "x=y",
        "center",
        2,
    )
    assert config.cache.codec == "int8"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("views.count", "--set views.count: expected a.b=value"),
        ("=3", "--set =3: expected a.b=value"),
        ("views..count=3", "--set views..count=3: expected a.b=value"),
        ("weights_dir.x=3", "--set weights_dir.x=3: weights_dir has no fields to set"),
        ("samples.roots.0=b", "--set samples.roots.0=b: samples.roots has no fields to set"),
        ("samples.roots=[a", "--set samples.roots=[a, line 1: expected ',' or ']'"),
        ("views.count=x", "--set views.count: expected a whole number, found 'x'"),
        ("views.count=", "--set views.count: expected a whole number, found nothing"),
        ("views=3", "--set views: expected `key: value` fields, found 3"),
        ("views.recipe={crop: x}", "--set views.recipe.crop: expected 'random' or 'center', found 'x'"),
        ("view.count=1", "--set view: unknown field; did you mean views?"),
        ("students.s.optimiser.lr=1", "--set students.s.optimiser: unknown field; did you mean optimizer?"),
        ("students.s.dataset=val", "--set students.s.dataset: no dataset is named 'val' (there are: train)"),
    ],
)
def test_a_bad_override_is_named_as_it_was_typed(mistakes, override, expected):
    text = BASE.replace("{datasets", "{roots: [a], datasets") + "weights_dir: w\nstudents: {s: {}}\n"
    assert any(line.startswith(expected) for line in mistakes(text, override))


def test_mistakes_of_overrides_come_before_those_of_the_file(mistakes):
    assert [line.split(":")[0] for line in mistakes(BASE + "cache: {codec: zip}\n", "views.seed=a")[1:]] == [
        "--set views.seed",
        "line 2",
    ]


TWO = "samples: {datasets: {a: {source: a}, a-b: {source: b}}}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TWO + "teachers: {b-c: {}, c: {}}\n", "Features of b-c on a and of c on a-b would both be features/a-b-c."),
        (TWO + "teachers: {c: {}, c-center: {}}\n", "c-center on a and of c on a (centre crops) would both be"),
        (
            TWO + "teachers: {c: {}}\nevaluate: {encoders: {b-c: {}}}\n",
            "b-c on a (centre crops) and of c on a-b (centre",
        ),
        (TWO + "teachers: {m-random: {}}\nstudents: {m: {dataset: a}}\n", "The encoders of the name m-random are two."),
        (TWO + "teachers: {val: {}}\n", "'val' stands for the validation loss in the metrics"),
    ],
)
def test_names_that_would_be_one_on_disk_or_in_a_table_are_refused(mistakes, text, expected):
    assert any(expected in line for line in mistakes(text))


def test_names_that_differ_in_capitals_are_two_but_on_a_disk_that_ignores_them(load, mistakes, tmp_path):
    text = "samples: {datasets: {a: {source: a}, A: {source: b}}}\nteachers: {train: {}, Eval: {}, keys: {}, forward: {}}\n"
    assert set(load(text).samples.datasets) == {"a", "A"}
    (tmp_path / "UNIC-PIPE.YAML").hardlink_to(tmp_path / "unic-pipe.yaml")  # as such a disk finds it
    assert mistakes(text)[0] == "The datasets a and A differ in capitals alone, which this disk ignores."


def test_a_pilot_takes_no_student_s_name(load, tmp_path):
    load(BASE + "students: {main: {}, main-pilot: {}}\n")
    inventory = Inventory(load_workspace(tmp_path), rows="10")
    with pytest.raises(UserError, match="Student main would be kept as main-pilot here, and a student of that name"):
        inventory.student_name("main")


@pytest.mark.parametrize("where", ["teachers: {t: {encoder: 'timm:test_vit', ", "students: {s: {"])
def test_mean_and_std_are_of_colours_from_0_to_1(mistakes, where):
    assert any("divide by 255" in line for line in mistakes(BASE + where + "mean: [124, 116, 104]}}\n"))
    assert any("above 0" in line for line in mistakes(BASE + where + "std: [0.2, 0, 0.2]}}\n"))


def test_what_was_probably_not_meant_is_said_once(tmp_path):
    """Two names for one network; features of an earlier version whose names on disk are one."""
    (tmp_path / "unic-pipe.yaml").write_text(
        "samples: {datasets: {a: {source: x}, a-b: {source: x}}}\n"
        "teachers:\n"
        "  b-c: {encoder: timm:test_vit, weights: 'random:0', image_size: 64}\n"
        "  c: {encoder: timm:test_vit, weights: 'random:0', image_size: 64}\n"
        "  d: {encoder: timm:test_vit, weights: 'random:1', image_size: 64}\n"
        "  e: {encoder: checkpoint:gone.pth}\n"
    )
    for number, (dataset, encoder) in enumerate((("a", "b-c"), ("a-b", "c"))):
        with pytest.raises(UserError, match="would both be features/a-b-c"):
            load_workspace(tmp_path)
        folder = tmp_path / "features" / f"a-b-c-0123456{number}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(feature_manifest(features(), dataset, encoder).to_bytes())
    twins, shared = remarks(Inventory(load_workspace(tmp_path)))
    assert twins.startswith(
        "Teachers b-c and c are the same weights, read alike: they are extracted, stored and learned 2"
    )
    assert shared.startswith(
        "b-c on a and c on a-b share the name features/a-b-c, under which only the last one is found"
    )
