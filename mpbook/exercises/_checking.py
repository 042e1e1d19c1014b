"""The check itself, and what an exercise is.

A module here whose name begins with an underscore is no chapter.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Answer = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """A question with its inputs, its right answer and the known ways to get it wrong.

    Args:
        inputs: argument tuples, simplest first.
        solution: the right answer for each.
        misconceptions: what a wrong answer means, with the function that gives that wrong answer.
        describe: how to print an input, ``repr`` of the arguments if not given.
    """

    inputs: Callable[[], Iterable[tuple[Any, ...]]]
    solution: Answer
    misconceptions: Mapping[str, Answer] = field(default_factory=dict)
    describe: Answer = lambda *arguments: ", ".join(map(repr, arguments))


def check(name: str, answer: Answer | Any) -> bool:
    """Try an answer to an exercise, and print what was found.

    Args:
        name: chapter and exercise, as ``"precision_formats.largest"``.
        answer: the reader's function; for a question without inputs, the value itself.

    Returns:
        Whether every answer was right.

    Raises:
        ValueError: no exercise has that name.
    """
    exercise = find(name)
    function = answer if callable(answer) else lambda *_: answer
    right: list[tuple[Any, ...]] = []
    for arguments in exercise.inputs():
        finding = _compare(exercise, function, arguments, right)
        if finding:
            print(f"{name}: not yet.\n{finding}")
            return False
        right.append(arguments)
    print(f"{name}: right" + (f", on all {len(right)} inputs." if len(right) > 1 else "."))
    return True


def find(name: str) -> Exercise:
    """The exercise called ``"chapter.exercise"``.

    Raises:
        ValueError: no such chapter or exercise; the message lists those there are.
    """
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    chapters = sorted(name for name in found if not name.startswith("_"))
    chapter, _, exercise = name.partition(".")
    if chapter not in chapters:
        raise ValueError(f"name={name!r}: expected CHAPTER.EXERCISE, a chapter of {chapters}")
    exercises: dict[str, Exercise] = importlib.import_module(f"{__package__}.{chapter}").EXERCISES
    if exercise not in exercises:
        raise ValueError(f"name={name!r}: {chapter} has the exercises {', '.join(exercises)}")
    return exercises[exercise]


def _compare(
    exercise: Exercise,
    function: Answer,
    arguments: tuple[Any, ...],
    right: Sequence[tuple[Any, ...]],
) -> str:
    """What is wrong with the answer to one input, after those answered right; or nothing."""
    expected = exercise.solution(*arguments)
    where = f"For {exercise.describe(*arguments)}" if arguments else "Here"
    try:
        actual = function(*arguments)
    except Exception as error:  # the reader's code may raise anything
        return f"{where} your function raises {type(error).__name__}: {error}"
    if _same(actual, expected):
        return ""
    finding = f"{where} you answer {actual!r}; it is {expected!r}."
    for meaning, wrong in exercise.misconceptions.items():
        explains = all(_same(wrong(*earlier), exercise.solution(*earlier)) for earlier in right)
        if explains and _same(actual, wrong(*arguments)):
            return f"{finding}\n{meaning}"
    return finding


def _same(left: Any, right: Any) -> bool:
    """Equal, NaN equal to NaN, sequences element by element."""
    if isinstance(right, tuple | list):
        return (
            isinstance(left, tuple | list)
            and len(left) == len(right)
            and all(map(_same, left, right))
        )
    if isinstance(right, float) and math.isnan(right):
        return isinstance(left, float) and math.isnan(left)
    try:
        return bool(left == right)
    except Exception:  # an object that does not compare is not the answer
        return False
