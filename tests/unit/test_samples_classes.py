"""Class names, and the lists that give them."""

import json

import pytest

from unic_pipe.pipeline.samples.classes import match_classes, match_texts, named
from unic_pipe.pipeline.samples.labels import read_labels
from unic_pipe.pipeline.samples.shards import class_number
from unic_pipe.pipeline.workspace.results import result_definition, result_key, why_stale
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import EvaluateConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.schemas.probes import BY_NAME, PROTOCOL, SEARCHED
from unic_pipe.schemas.samples import DatasetManifest, Segment

ABC = ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("train", "test", "table"),
    [
        (ABC, ABC, None),
        (ABC, ("ant", "bee"), None),
        (ABC, ("ant", "bee", "cat", "dog"), None),
        (ABC, ("ant", "cat"), ((0, 0), (1, 2))),
        (ABC, ("bee", "cat", "dog"), ((0, 1), (1, 2))),
        (ABC, ("ant", "bee", "dog"), ((0, 0), (1, 1))),
        (ABC, (" bee", "cat "), ((0, 1), (1, 2))),
        (("caf\u00e9", "tea"), ("cafe\u0301",), None),
        (None, ("0", "1", "10", "2"), ((0, 0), (1, 1), (2, 10), (3, 2))),
        (("0", "1", "10", "2"), None, ((0, 0), (1, 1), (2, 3), (10, 2))),
        (("007", "8"), ("7", "8"), None),
        (("007", "8"), ("8",), ((0, 1),)),
        (ABC, None, None),
        (None, ABC, None),
        (ABC, ("0", "10", "2"), ((0, 0), (2, 2))),
    ],
)
def test_classes_by_name(train, test, table):
    assert match_classes(("train", train), ("test", test)).table == table


def test_disjoint_and_doubled_names_are_refused():
    with pytest.raises(UserError, match="no class in common"):
        match_classes(("train", ABC), ("test", ("n01440764", "n02084071")))
    with pytest.raises(UserError, match="differ only in capitals: ant"):
        match_classes(("train", ABC), ("test", ("Ant", "Bee")))
    with pytest.raises(UserError, match="two classes named 'ant'"):
        match_classes(("train", ("ant", "ant")), ("test", ABC))
    assert named(ABC, (2, 5)) == ("cat", "5")


def test_texts_by_name_or_in_order():
    assert match_texts("d", ("ant", "cat"), ABC) == ((0, 0), (1, 2))
    assert match_texts("d", ("n1", "n2", "n3"), ABC) is None
    assert match_texts("d", None, ABC) is None
    assert match_texts("d", ("0", "10", "2"), [str(i) for i in range(11)]) == ((0, 0), (1, 10), (2, 2))
    for classes in (("n1", "n2"), ("bee", "n2", "n3"), ("ant", "dog")):
        with pytest.raises(UserError, match="among their names"):
            match_texts("d", classes, ABC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,bee\nb 1.jpg,cat fish\n", ("bee", "cat fish")),
        ("a.jpg;bee\r\nb 1.jpg;cat\r\n", ("bee", "cat")),
        ("a.jpg\tbee\nb 1.jpg\tcat, wild\n", ("bee", "cat, wild")),
        ("a.jpg bee\nb 1.jpg cat\n", ("bee", "cat")),
        ('"a.jpg" "bee"\n"b 1.jpg" "cat fish"\n', ("bee", "cat fish")),
        ('"a.jpg", "bee"\n"b 1.jpg", "cat"\n', ("bee", "cat")),
        ("\ufefffilename,class\na.jpg,bee\nb 1.jpg,cat\n", ("bee", "cat")),
        ("class,file\nbee,a.jpg\ncat,b 1.jpg\n", ("bee", "cat")),
        (",id,file_name,w,label\n0,7,a.jpg,3,bee\n1,8,b 1.jpg,4,cat\n", ("bee", "cat")),
        ("sep=;\na.jpg;bee\nb 1.jpg;cat\n", ("bee", "cat")),
        ("pics/a.jpg,bee\npics/b 1.jpg,cat\n", ("bee", "cat")),
        ("else\\a.jpg,bee\nelse\\b 1.jpg,cat\n", ("bee", "cat")),
        ("pics/a.jpg,bee\nelse/a.jpg,cat\npics/b 1.jpg,cat\n", ("bee", "cat")),
        ("a,bee\nb 1,cat\n", ("bee", "cat")),
        ("file,class,\na.jpg,bee,\nb 1.jpg,cat,\n", ("bee", "cat")),
        ("a.jpg,007\nb 1.jpg,10\n", (7, 10)),
        ("a.jpg,3.0\nb 1.jpg,\n", (3, None)),
        ("a.jpg,-1\nb 1.jpg,4\n", (None, 4)),
        ("a.jpg,null\nb 1.jpg,cat\n", (None, "cat")),
        ("3\n-1\n", (3, None)),
        ("3\n\n\n4\n", (3, 4)),
        ("ImageId,PredictionString\na,n01 1 2 3 4 n02 1 1 1 1\nb 1,n02 3 3 3 3 \n", ("n01", "n02")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_of_many_programs(tmp_path, text, expected, encoding):
    file = tmp_path / "l.csv"
    file.write_bytes(text.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    found = read_labels(file, tmp_path / "pics", ("a.jpg", "b 1.jpg"))
    names = tuple(n if n is None or found.classes is None else found.classes[n] for n in found.numbers)
    assert names == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.jpg,10,5,30,0\nb 1.jpg,11,5,30,1\n", "line 1 has 5 fields, not 2"),
        ("fname,x1,kind\na.jpg,10,0\nb 1.jpg,11,1\n", r"columns fname, x1, kind"),
        ("file,class_id,class_name\na.jpg,1,x\nb 1.jpg,2,y\n", "class_id and class_name could each be the class"),
        ("a.jpg,bee\nb 1.jpg,cat,wild\n", "line 2 has 3 fields"),
        ("a.jpg,bee\na.jpg,bee\nb 1.jpg,cat\n", "a.jpg is named twice, in lines 1 and 2"),
        ("x/a.jpg,bee\ny/a.jpg,cat\nb 1.jpg,cat\n", "a.jpg is named twice"),
        ("file,class\na.jpg,bee\n", "no label for b 1.jpg"),
        ("bee,a.jpg\ncat,b 1.jpg\n", r"none of its lines names an image .* \(line 1: 'bee'; an image there: 'a.jpg'\)"),
        ("a.jpg,-2\nb 1.jpg,3\n", "'-2' is no class number"),
        ("a.jpg,0.5\nb 1.jpg,3\n", "'0.5' is no class number"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, said):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_labels(tmp_path / "l.csv", tmp_path / "pics", ("a.jpg", "b 1.jpg"))


def test_lines_that_name_no_image_are_counted(tmp_path):
    (tmp_path / "l.csv").write_text("id,breed\na.jpg,pug\nc.jpg,pug\n")
    found = read_labels(tmp_path / "l.csv", tmp_path, ("a.jpg",))
    assert "2 lines name no image (first: line 1, 'id')" in found.remarks[0]


@pytest.mark.parametrize(
    ("value", "number"),
    [("7\n", 7), (" 007 ", 7), (7, 7), (7.0, 7), ("", None), ("-1", None), (-1, None), (None, None), ("null", None)],
)
def test_numbers_in_tars(value, number):
    assert class_number(value) == number


@pytest.mark.parametrize("value", ["cat", "1_0", "-2", 1.5, True, [1], str(2**31), json.loads("1e300")])
def test_no_numbers_in_tars(value):
    with pytest.raises(ValueError, match=r".+"):
        class_number(value)


def test_only_results_whose_mapping_changes_have_the_new_protocol(tmp_path):
    segment = Segment(
        file="s", first_row=0, rows=1, rows_digest="1" * 64, labels_digest="2" * 64, file_digest="3" * 32, shards=()
    )

    def definition(train, test, probe="knn", **settings):
        sides = {
            side: DatasetManifest(
                name=side, source="s", layout="class-folders", block_rows=4, classes=names, labelled=True, permuted=True,
                segments=(segment,),
            )
            for side, names in (("train", train), ("test", test))
        }  # fmt: skip
        digests = {"features_train": "4" * 64, "features_test": "5" * 64, "encoder": "6" * 64}
        return result_definition(EvaluateConfig(**settings), probe, **sides, **digests)

    same = definition(ABC, ABC)
    assert (same.protocol, same.classes) == (PROTOCOL, None)
    assert definition(ABC, ("ant", "bee")) == definition(None, None) == definition(ABC, None) == same
    changed = definition(ABC, ("ant", "cat"))
    assert changed.protocol == BY_NAME[PROTOCOL]
    assert changed.classes != definition(ABC, ("bee", "cat")).classes

    def written(made):
        record = ResultRecord(
            benchmark="b", encoder="e", role="teacher", definition=made, digest=digest_of(made), status="done",
            metrics={"top1": 0.5}, chosen={},
        )  # fmt: skip
        path = tmp_path / result_key("b", "e", made)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record.to_bytes())

    written(same)
    assert "matched by name now" in why_stale(tmp_path, "b", "e", changed)
    assert why_stale(tmp_path, "b", "e", same) == ""
    searched = definition(ABC, ABC, "logistic")
    assert searched.protocol == definition(ABC, ("ant", "cat"), "sgd").protocol == SEARCHED
    assert definition(ABC, ABC, "logistic", c_values=(1.0,)).protocol == PROTOCOL  # nothing to choose, nothing changes
    assert why_stale(tmp_path, "b", "e", searched) == ""
    written(searched.model_copy(update={"protocol": PROTOCOL}))
    assert "takes the middle one now" in why_stale(tmp_path, "b", "e", searched)
