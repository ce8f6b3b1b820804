"""Whether a training looks as it should."""

import pytest

from unic_pipe.pipeline.workspace.health import agreement, finding


def rows(*cosines: tuple[float, float], prefix: str = "") -> list[dict[str, float]]:
    """A row every 10 steps, with the cosines to teachers a and b."""
    return [
        {
            "step": 10 * (i + 1),
            f"{prefix}a/cls/cosine": 1 - a,
            f"{prefix}a/patch/cosine": 1 - a,
            f"{prefix}b/cls/cosine": 1 - b,
        }
        for i, (a, b) in enumerate(cosines)
    ]


def test_validation_is_believed_where_there_is_some() -> None:
    found = agreement([*rows((0.9, 0.8)), *rows((0.7, 0.6), prefix="val/")], ("a", "b"))
    assert found == pytest.approx({"a": 0.7, "b": 0.6})
    assert agreement([], ("a",)) == {}


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ((0.9, 0.65), None),
        ((0.45, 0.43), "under-trained"),
        ((0.85, 0.2), "one-sided"),
        ((0.03, -0.02), "collapsed"),
    ],
)
def test_the_end_of_a_training(end: tuple[float, float], kind: str | None) -> None:
    found = finding(rows((0.0, 0.0), (0.3, 0.2), end), ("a", "b"), done=60, steps=60)
    assert (found.kind if found else None) == kind
    if found:
        assert "\n" not in str(found)


def test_only_a_collapse_is_told_before_the_end() -> None:
    little = finding(rows((0.3, 0.3)), ("a", "b"), done=100, steps=1000)
    nothing = finding(rows((0.0, 0.01)), ("a", "b"), done=100, steps=1000)
    early = finding(rows((0.0, 0.01)), ("a", "b"), done=100, steps=1001)
    assert little is None
    assert nothing is not None
    assert nothing.kind == "collapsed"
    assert early is None, "nothing can be told in the first tenth"


def test_a_student_of_a_few_steps_is_called_too_short_and_not_collapsed() -> None:
    found = finding(rows((0.0, 0.01)), ("a", "b"), done=15, steps=15)
    assert found is not None
    assert found.kind == "under-trained"


def test_the_end_is_judged_by_the_last_row_there_is() -> None:
    found = finding(rows((0.3, 0.3)), ("a", "b"), done=13, steps=13)
    assert found is not None
    assert found.kind == "under-trained", "three steps after the last row, without a validation set"


def test_metrics_of_other_terms_tell_nothing() -> None:
    assert finding([{"step": 10, "a/loss": 3.0}], ("a",), done=10, steps=10) is None
