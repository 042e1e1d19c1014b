"""`mpbook.exercises`: what `check` finds, and that every exercise of the book diagnoses."""

import importlib
import math
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest

import mpbook.exercises
from mpbook.exercises import Exercise, _checking, check, find

MODULES = [module.name for module in pkgutil.iter_modules(mpbook.exercises.__path__)]
CHAPTERS = [name for name in MODULES if not name.startswith("_")]
NAMES = [
    f"{chapter}.{exercise}"
    for chapter in CHAPTERS
    for exercise in importlib.import_module(f"mpbook.exercises.{chapter}").EXERCISES
]
MISCONCEPTIONS = [(name, meaning) for name in NAMES for meaning in find(name).misconceptions]

Capture = pytest.CaptureFixture[str]
Invent = Callable[..., None]

every_exercise = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def invent(monkeypatch: pytest.MonkeyPatch) -> Invent:
    """Return a function that makes an exercise called ``invented.it``."""

    def make(**options: Any) -> None:
        exercise = Exercise(**options)
        monkeypatch.setattr(_checking, "find", lambda name: exercise)

    return make


def finding(answer: Any, capsys: Capture, name: str = "invented.it") -> str:
    """Check a wrong answer; return what is printed."""
    assert not check(name, answer)
    return capsys.readouterr().out


# --- the engine -------------------------------------------------------------------------------


def test_a_right_function_passes_and_says_on_how_many_inputs(
    invent: Invent, capsys: Capture
) -> None:
    invent(inputs=lambda: [(1,), (2,), (3,)], solution=lambda n: n * n)
    assert check("invented.it", lambda n: n**2)
    assert capsys.readouterr().out == "invented.it: right, on all 3 inputs.\n"


def test_the_first_counterexample_is_shown_and_no_later_one(
    invent: Invent, capsys: Capture
) -> None:
    invent(inputs=lambda: [(n,) for n in range(10)], solution=lambda n: n * n)
    text = finding(lambda n: n + n, capsys)
    assert text == "invented.it: not yet.\nFor 1 you answer 2; it is 1.\n"


def test_an_input_is_described_as_the_exercise_wants(invent: Invent, capsys: Capture) -> None:
    describe = "the number {}".format
    invent(inputs=lambda: [(7,)], solution=lambda n: n, describe=describe)
    assert "For the number 7 you answer 8" in finding(lambda n: n + 1, capsys)


def test_the_misconception_that_predicts_the_answer_is_named(
    invent: Invent, capsys: Capture
) -> None:
    invent(
        inputs=lambda: [(2,), (3,)],
        solution=lambda n: n * n,
        misconceptions={"That doubles.": lambda n: 2 * n, "That counts.": lambda n: n},
    )
    assert finding(lambda n: n + n, capsys).endswith(
        "For 3 you answer 6; it is 9.\nThat doubles.\n"
    )
    assert finding(lambda n: n, capsys).endswith("For 2 you answer 2; it is 4.\nThat counts.\n")
    assert finding(lambda n: 0, capsys).endswith("For 2 you answer 0; it is 4.\n")


def test_a_misconception_must_also_explain_the_answers_that_were_right(
    invent: Invent, capsys: Capture
) -> None:
    invent(
        inputs=lambda: [(2,), (3,)],
        solution=lambda n: n * n,
        misconceptions={"Always six.": lambda n: 6, "That doubles.": lambda n: 2 * n},
    )
    assert finding(lambda n: n + n, capsys).endswith("it is 9.\nThat doubles.\n")


def test_an_exception_in_the_readers_code_is_a_finding(invent: Invent, capsys: Capture) -> None:
    invent(inputs=lambda: [(0,)], solution=lambda n: n)
    text = finding(lambda n: 1 // n, capsys)
    assert "For 0 your function raises ZeroDivisionError" in text


def test_a_function_of_too_few_arguments_is_a_finding(invent: Invent, capsys: Capture) -> None:
    invent(inputs=lambda: [(1, 2)], solution=lambda a, b: a + b)
    assert "your function raises TypeError" in finding(lambda a: a, capsys)


def test_an_interrupt_is_not_a_finding(invent: Invent) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    invent(inputs=lambda: [()], solution=lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        check("invented.it", interrupted)


def test_a_question_without_inputs_takes_the_value_itself(invent: Invent, capsys: Capture) -> None:
    invent(inputs=lambda: [()], solution=lambda: 257, misconceptions={"No.": lambda: 256})
    assert check("invented.it", 257)
    assert capsys.readouterr().out == "invented.it: right.\n"
    assert finding(256, capsys) == "invented.it: not yet.\nHere you answer 256; it is 257.\nNo.\n"


def test_nan_is_an_answer(invent: Invent, capsys: Capture) -> None:
    invent(inputs=lambda: [()], solution=lambda: math.nan)
    assert check("invented.it", math.nan)
    capsys.readouterr()
    assert "you answer 'nan'; it is nan" in finding("nan", capsys)
    invent(inputs=lambda: [()], solution=lambda: 1.0)
    assert "you answer nan; it is 1.0" in finding(math.nan, capsys)


def test_tuples_are_compared_element_by_element(invent: Invent, capsys: Capture) -> None:
    invent(inputs=lambda: [()], solution=lambda: (1, (math.nan, 2.0)))
    assert check("invented.it", (1, (math.nan, 2.0)))
    assert check("invented.it", [1, [math.nan, 2.0]])
    capsys.readouterr()
    for wrong in ((1, (math.nan, 3.0)), (1,), (1, 2.0), 1, None):
        assert "not yet" in finding(wrong, capsys)


def test_an_answer_that_does_not_compare_is_wrong(invent: Invent, capsys: Capture) -> None:
    class Stubborn:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no")

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            return "stubborn"

    invent(inputs=lambda: [()], solution=lambda: 1)
    assert "you answer stubborn" in finding(Stubborn(), capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.largest", "expected CHAPTER.EXERCISE, a chapter of .*precision_formats"),
        ("largest", "expected CHAPTER.EXERCISE"),
        ("", "expected CHAPTER.EXERCISE"),
        ("precision_formats", "has the exercises decode_e4m3, largest"),
        ("precision_formats.larges", "has the exercises decode_e4m3, largest"),
    ],
)
def test_unknown_names_are_refused_with_those_there_are(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(name, 1)


# --- the exercises of the book ----------------------------------------------------------------


def test_there_are_exercises() -> None:
    assert len(NAMES) >= 4
    assert len(MISCONCEPTIONS) >= len(NAMES)


@every_exercise
def test_the_solution_is_right_and_not_raising(name: str, capsys: Capture) -> None:
    assert check(name, find(name).solution)
    assert ": right" in capsys.readouterr().out


@every_exercise
def test_inputs_can_be_described(name: str) -> None:
    exercise = find(name)
    inputs = list(exercise.inputs())
    assert inputs
    assert all(exercise.describe(*arguments).strip() for arguments in inputs if arguments)


@pytest.mark.parametrize(("name", "meaning"), MISCONCEPTIONS)
def test_every_misconception_fails_and_is_the_one_that_is_named(
    name: str, meaning: str, capsys: Capture
) -> None:
    text = finding(find(name).misconceptions[meaning], capsys, name)
    assert "your function raises" not in text
    assert text.endswith(f".\n{meaning}\n")
