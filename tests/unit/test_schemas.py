"""Documents: what is written is read back, today and by every later version; what was tampered with is refused.

`data/documents-v1` holds one document of each kind as the first release wrote it, `data/documents-v2` the same of those
kinds that have been sealed since. These files never change: when a schema does, `Document.upgrade` brings them up to date.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import unic_pipe.schemas
from unic_pipe.pipeline.workspace.differences import describe, differences
from unic_pipe.schemas.base import Document, Model, canonical_json, digest_of, seal, seal_holds, short
from unic_pipe.schemas.config import Config, DatasetConfig, SamplesConfig, StudentConfig
from unic_pipe.schemas.errors import DamagedError, StageError, UserError
from unic_pipe.schemas.features import FeatureManifest, UnitRecord
from unic_pipe.schemas.recipes import CENTER, GENTLE, UNIC, Recipe, recipe_named
from unic_pipe.schemas.samples import DatasetManifest
from unic_pipe.schemas.students import StudentManifest

OLD = Path(__file__).parent / "data" / "documents-v1"
SECOND = OLD.with_name("documents-v2")


def kinds():
    for module in pkgutil.iter_modules(unic_pipe.schemas.__path__):
        importlib.import_module(f"unic_pipe.schemas.{module.name}")
    found = {kind.KIND: kind for kind in Document.__subclasses__() if kind.__module__.startswith("unic_pipe.schemas.")}
    return dict(sorted(found.items()))


KINDS = kinds()
SINCE_V2 = [kind for kind, document in KINDS.items() if document.SEALED == 2]


def old(kind):
    return (OLD / f"{kind}.json").read_bytes()


def first_sealed(kind):
    return ((SECOND if kind in SINCE_V2 else OLD) / f"{kind}.json").read_bytes()


def read(kind):
    return KINDS[kind].from_bytes(old(kind), f"{kind}.json")


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_the_first_release_stay_readable_and_round_trip(kind):
    document = read(kind)
    assert KINDS[kind].from_bytes(document.to_bytes(), "again") == document


def test_every_kind_has_an_old_document_and_a_name_of_its_own():
    assert {path.stem for path in OLD.glob("*.json")} == set(KINDS)
    assert len(KINDS) == len([k for k in Document.__subclasses__() if k.__module__.startswith("unic_pipe.schemas.")])


def test_recorded_digests_are_still_those_of_their_definitions():
    """The digests of the first release name folders on people's disks: no later version may compute others."""
    for kind in ("features", "student", "result"):
        document = read(kind)
        assert digest_of(document.definition) == document.digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_of_a_newer_version_asks_for_an_upgrade(kind):
    body = json.loads(old(kind))
    body["schema"] = f"{kind}/{KINDS[kind].VERSION + 1}"
    body["something new"] = 1
    body.pop("checksum", None)
    raw = seal((json.dumps(body, indent=1) + "\n").encode())
    newer = KINDS[kind].VERSION + 1
    with pytest.raises(
        UserError, match=rf"(?s)^x\.json: written by a newer unic-pipe \({kind}/{newer}; .*pip install --upgrade"
    ):
        KINDS[kind].from_bytes(raw, "x.json")


@pytest.mark.parametrize("kind", KINDS)
def test_no_changed_byte_of_a_sealed_document_is_read(kind):
    raw = first_sealed(kind)
    assert seal_holds(raw)
    assert KINDS[kind].from_bytes(raw, "x.json") == read(kind)
    for place in range(0, len(raw), 7):
        for bit in (1, 2, 4, 16, 32):
            damaged = bytearray(raw)
            damaged[place] ^= bit
            assert not seal_holds(bytes(damaged))
            with pytest.raises(UserError):
                KINDS[kind].from_bytes(bytes(damaged), "x.json")
    for damaged in (raw[:-1], raw + b" ", raw.replace(b"\n", b"\r\n")):
        with pytest.raises(DamagedError, match=r"x\.json: the checksum does not match"):
            KINDS[kind].from_bytes(damaged, "x.json")
    for damaged in (raw[:40], b""):
        with pytest.raises(DamagedError, match=r"x\.json: not valid JSON"):
            KINDS[kind].from_bytes(damaged, "x.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_whose_version_has_a_seal_is_damaged_without_one(kind):
    body = json.loads(first_sealed(kind))
    del body["checksum"]
    with pytest.raises(DamagedError, match=r"x\.json: the checksum does not match"):
        KINDS[kind].from_bytes((json.dumps(body, indent=1) + "\n").encode(), "x.json")


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_before_the_seal_are_told_by_their_version(kind):
    assert KINDS[kind].unsealed(old(kind)) == (kind in SINCE_V2)
    assert not KINDS[kind].unsealed(first_sealed(kind))
    assert not KINDS[kind].unsealed(b"")


def test_an_edited_document_names_the_file_and_every_problem():
    body = json.loads(old("dataset"))
    body["block_rows"] = "256"
    body["colour"] = "red"
    del body["layout"]
    body["segments"][0]["rows_digest"] = "xyz"
    with pytest.raises(UserError) as caught:
        DatasetManifest.from_bytes(json.dumps(body).encode(), "samples/train/manifest.json")
    message = caught.value.message
    assert message.startswith("samples/train/manifest.json: ")
    for words in ("layout: Field required", "block_rows: Input", "segments.0.rows_digest: String", "colour: Extra"):
        assert words in message
    assert "restore it, or move it away" in caught.value.hint


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "expected a dataset document, found schema None"),
        (b"{}", "expected a dataset document, found schema None"),
        (b'{"schema": 3}', "expected a dataset document, found schema 3"),
        (b'{"schema": "student/1"}', "expected a dataset document, found schema 'student/1'"),
        (b'{"schema": "dataset/x"}', "expected a dataset document, found schema 'dataset/x'"),
    ],
)
def test_what_is_not_the_expected_document_is_refused(raw, message):
    with pytest.raises(UserError, match=f"^m.json: {message}"):
        DatasetManifest.from_bytes(raw, "m.json")


def test_older_versions_are_brought_up_to_date():
    class Thing(Document):
        KIND: ClassVar[str] = "thing"
        VERSION: ClassVar[int] = 2
        SEALED: ClassVar[int] = 2
        side_px: int

        @classmethod
        def upgrade(cls, body, version):
            return {"side_px": body["side"]} if version == 1 else body

    assert Thing.from_bytes(b'{"schema": "thing/1", "side": 3}', "x") == Thing(side_px=3)
    written = json.loads(Thing(side_px=3).to_bytes())
    assert {name: written[name] for name in ("schema", "side_px")} == {"schema": "thing/2", "side_px": 3}


def test_documents_hold_no_numbers_that_json_has_not():
    with pytest.raises(ValidationError):
        read("run").model_validate(read("run").model_dump() | {"rate": float("nan")})


def test_documents_are_frozen():
    with pytest.raises(ValidationError):
        read("unit").block = 4


def test_a_new_option_with_its_default_changes_no_digest():
    class Inner(Model):
        lr: float = 0.1

    class Before(Model):
        name: str
        inner: Inner = Inner()

    class InnerLater(Inner):
        warmup: int = 5

    class After(Before):
        inner: InnerLater = InnerLater()
        extra: dict[str, int] = {}
        limit: float | None = None

    assert digest_of(Before(name="a")) == digest_of(After(name="a"))
    changed = Before(name="a", inner=Inner(lr=0.2)), After(name="a", inner=InnerLater(lr=0.2))
    assert digest_of(changed[0]) == digest_of(changed[1]) != digest_of(Before(name="a"))
    assert digest_of(After(name="a", limit=1.0)) != digest_of(After(name="a"))


def test_a_default_written_out_is_the_same_definition():
    assert digest_of(StudentConfig()) == digest_of(StudentConfig(seed=0, drop_path=0.1))
    assert digest_of(StudentConfig()) != digest_of(StudentConfig(seed=1))
    assert short(digest_of(StudentConfig())) == digest_of(StudentConfig())[:8]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(
    st.characters(exclude_categories=["Cs"])), lambda c: st.lists(c) | st.dictionaries(st.text(
    st.characters(exclude_categories=["Cs"])), c), max_leaves=10))  # fmt: skip
def test_the_canonical_form_does_not_depend_on_how_a_value_was_written(value):
    raw = canonical_json(value)
    again = json.loads(raw)
    assert again == value
    assert canonical_json(again) == raw
    assert canonical_json(json.loads(json.dumps(value, indent=3))) == raw
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == raw


def test_the_canonical_form_is_what_it_always_was():
    assert (
        canonical_json({"b": [1, 2.5, 1e-6, True, None], "a": "é"}) == '{"a":"é","b":[1,2.5,1e-06,true,null]}'.encode()
    )


def test_a_dataset_counts_rows_and_blocks_over_its_segments():
    manifest = read("dataset")
    assert (manifest.rows, manifest.end_row, manifest.blocks) == (310, 522, 3)
    assert manifest.digest == manifest.segments[0].rows_digest


def test_recipes_by_name_and_their_checks():
    assert (recipe_named("unic"), recipe_named("gentle"), recipe_named(CENTER)) == (UNIC, GENTLE, CENTER)
    with pytest.raises(UserError, match=r"(?s)No view recipe is named 'x'.*unic, gentle, center"):
        recipe_named("x")
    with pytest.raises(ValidationError) as caught:
        Recipe(scale=(0.5, 0.1), ratio=(0.0, 1.0), jitter=(-1.0, 0.0, 0.0, 0.6), blur_kernel=8, blur_sigma=(2.0, 1.0))
    for field in (
        "scale",
        "ratio",
        "jitter: (-1.0",
        "jitter: hue 0.6",
        "blur_kernel: 8 is even; choose 9",
        "blur_sigma",
    ):
        assert field in str(caught.value)


def test_a_configuration_made_in_python_is_checked_as_well():
    samples = SamplesConfig(datasets={"train": DatasetConfig(source="a")})
    with pytest.raises(ValidationError, match="no teacher is named 'x'"):
        Config(samples=samples, students={"s": StudentConfig(teachers=("x",))})


def test_errors_keep_their_words_across_processes():
    import pickle

    for error in (UserError("a", "b"), StageError("a")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.message, again.hint, str(again)) == (
            type(error),
            error.message,
            error.hint,
            str(error),
        )
    assert (UserError("a").exit_code, StageError("a").exit_code) == (2, 1)


def changed(document, **updates):
    """A definition with one field changed, given as `encoder__weights=...`."""
    (path, value), *_ = updates.items()
    field, _, rest = path.partition("__")
    return document.model_copy(update={field: changed(getattr(document, field), **{rest: value}) if rest else value})


def test_differences_are_said_in_the_words_of_the_configuration():
    features = FeatureManifest.from_bytes(old("features"), "f").definition
    assert differences(features, features) == []
    assert describe(features, changed(features, encoder__weights="f" * 64)) == "encoder.weights digest changed"
    assert describe(features, changed(features, dataset="f" * 64)) == "dataset digest changed"
    assert describe(features, changed(features, compute__batch=32)) == "compute.batch: 64 → 32"
    several = changed(changed(features, recipe=UNIC), view_seed=1)
    recipe = "recipe.scale: [0.8, 1.0] → [0.08, 1.0], recipe.flip: 0.0 → 0.5, recipe.jitter_probability: 0.0 → 0.8"
    assert describe(features, several) == f"{recipe} and 4 more"


def test_differences_of_students_name_the_teachers():
    student = StudentManifest.from_bytes(old("student"), "s").definition
    [dino] = student.teachers
    ibot = dino.model_copy(update={"name": "ibot"})
    both = changed(student, teachers=(dino, ibot))
    assert describe(student, changed(student, config__optimizer__lr=0.1)) == "optimizer.lr: 0.016 → 0.1"
    assert describe(student, changed(student, config__optimizer__clip_norm=1.0)) == "optimizer.clip_norm: none → 1.0"
    assert describe(student, both) == "teachers.ibot added"
    assert describe(both, student) == "teachers.ibot removed"
    assert describe(both, changed(both, teachers=(ibot, dino))) == "teachers: dino, ibot → ibot, dino"
    other = dino.model_copy(update={"features": "f" * 64})
    assert describe(student, changed(student, teachers=(other,))) == "teachers.dino.features digest changed"


def test_a_unit_s_record_lists_its_statistics_last():
    record = UnitRecord.from_bytes(old("unit"), "u")
    assert record.files[-1].path.endswith(".stats")
