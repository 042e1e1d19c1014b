"""A program made of functions stands by itself, or is refused with the name that it lacks."""

from __future__ import annotations

import pytest

from mpbook.many_gpus.program_text import PRELUDE, program_text

# ruff: noqa: F821  the prelude has those names

ELSEWHERE = 3


def answers():
    return len([torch, nn, functional, dist])


def helper(x):
    return x + 1


def calls():
    return helper(2)


def uses_a_global():
    return ELSEWHERE


def uses_it_inside():
    def inner():
        return ELSEWHERE

    return inner()


def has_a_default(x=ELSEWHERE):
    return x


def decorated(function):
    return function


@decorated
def is_decorated():
    return 3


def has_a_class():
    class Box:
        width = 3
        height = width + 1

        def area(self):
            return self.width * self.height

    return Box().area()


def has_a_class_of_elsewhere():
    class Box:
        width = ELSEWHERE

    return Box.width


def is_annotated(x: NeverDefined = 3) -> NeverDefined:
    return x


def test_the_prelude_is_every_name_that_a_function_may_use() -> None:
    names: dict[str, object] = {}
    exec(PRELUDE, names)
    assert {"torch", "dist", "nn", "functional", "fully_shard", "init_device_mesh"} <= set(names)
    assert {"MixedPrecisionPolicy", "DistributedDataParallel"} <= set(names)


def test_functions_without_arguments_run_in_order_and_the_others_help() -> None:
    names: dict[str, object] = {"__name__": "a program"}
    exec(program_text([helper, calls, answers], main=None), names)
    assert names["run_all"]() == {"calls": 3, "answers": 4}  # type: ignore[operator]


@pytest.mark.parametrize(
    "function", [uses_a_global, uses_it_inside, has_a_default, has_a_class_of_elsewhere]
)
def test_a_name_from_outside_is_refused(function) -> None:
    with pytest.raises(ValueError, match=f"{function.__name__} uses ELSEWHERE"):
        program_text([function], main=function.__name__)


def test_a_decorator_that_does_not_come_along_is_refused() -> None:
    with pytest.raises(ValueError, match="is_decorated uses decorated"):
        program_text([is_decorated], main="is_decorated")


def test_the_body_of_a_class_finds_its_own_names() -> None:
    names: dict[str, object] = {"__name__": "a program"}
    exec(program_text([has_a_class], main="has_a_class"), names)
    assert names["has_a_class"]() == 12  # type: ignore[operator]


def test_annotations_stay_text_where_their_module_says_so() -> None:
    names: dict[str, object] = {"__name__": "a program"}
    exec(program_text([is_annotated], main="is_annotated"), names)
    assert names["is_annotated"]() == 3  # type: ignore[operator]


def test_a_helper_that_does_not_come_along_is_refused() -> None:
    with pytest.raises(ValueError, match="calls uses helper"):
        program_text([calls], main="calls")


def test_a_variable_of_the_function_around_it_is_refused() -> None:
    width = 3

    def inner():
        return width

    with pytest.raises(ValueError, match="inner uses width"):
        program_text([inner], main="inner")


@pytest.mark.parametrize("what", [len, print, lambda: 3])
def test_only_functions_made_with_def_have_a_source(what) -> None:
    with pytest.raises(ValueError, match="made with def"):
        program_text([what], main="what")


def test_no_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="none given"):
        program_text([], main=None)
