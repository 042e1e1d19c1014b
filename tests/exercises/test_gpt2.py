"""The answers of the exercises on GPT-2, against torch's counter, the package and plain sums."""

import math
from fractions import Fraction

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from mpbook.cost.measure import count_flops, utilisation
from mpbook.evidence.case_study import MemoryLine
from mpbook.exercises import find
from mpbook.models import GPT, GPTConfig


def solution(name: str, *arguments: object) -> object:
    return find(f"gpt2.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[object, ...]]:
    return list(find(f"gpt2.{name}").inputs())


@pytest.mark.parametrize(("layers", "width", "vocabulary", "context"), inputs("flops_per_token"))
def test_the_operations_are_those_that_torch_counts(
    layers: int, width: int, vocabulary: int, context: int
) -> None:
    shape = GPTConfig(vocabulary=vocabulary, context=context, layers=layers, heads=1, width=width)
    with torch.device("meta"):
        model, tokens = GPT(shape), torch.zeros(1, context, dtype=torch.int64)

    def step() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()

    asked = solution("flops_per_token", layers, width, vocabulary, context)
    assert asked == count_flops(step) / context


@pytest.mark.parametrize(
    ("fixed", "each", "mixed", "mixed_each", "saving"), inputs("batch_for_saving")
)
def test_the_batch_is_where_the_lines_say(
    fixed: int, each: int, mixed: int, mixed_each: int, saving: float
) -> None:
    line = MemoryLine(mixed, mixed_each)
    tokens = line.tokens_for(saving, to=MemoryLine(fixed, each))
    expected = None if tokens is None else max(1, math.ceil(tokens - 1e-9))
    assert solution("batch_for_saving", fixed, each, mixed, mixed_each, saving) == expected


def test_savings_that_no_batch_reaches_are_asked_about() -> None:
    answers = [solution("batch_for_saving", *case) for case in inputs("batch_for_saving")]
    assert 2 <= answers.count(None) <= len(answers) - 4


@pytest.mark.parametrize(("tokens", "mega", "tera", "sheet"), inputs("mfu"))
def test_mfu_is_the_utilisation_of_the_dense_peak(
    tokens: int, mega: int, tera: float, sheet: str
) -> None:
    dense = tera * 1e12 / (2 if sheet == "with sparsity" else 1)
    percent = 100 * utilisation(tokens * mega * 1e6, 1.0, dense)
    assert solution("mfu", tokens, mega, tera, sheet) == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(("loss", "relative"), inputs("perplexity_change"))
def test_the_change_is_that_of_two_perplexities(loss: float, relative: float) -> None:
    before, after = math.exp(loss), math.exp(loss * (1 + relative))
    percent = 100 * float(Fraction(after) / Fraction(before) - 1)
    assert solution("perplexity_change", loss, relative) == pytest.approx(percent, abs=0.00501)
