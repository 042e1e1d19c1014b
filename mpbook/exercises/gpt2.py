"""The exercises of the chapter "GPT-2: a famous claim on trial", and how people get them wrong."""

from __future__ import annotations

import math

from mpbook.device_facts import GPUS
from mpbook.exercises._checking import Exercise

# --- flops_per_token: what training on one token costs -----------------------------------------

_SHAPES = [
    (1, 1, 3, 1),
    (1, 2, 3, 1),
    (2, 64, 256, 64),
    (12, 768, 50257, 1024),
    (48, 1600, 50257, 1024),
]
"""Layers, width, vocabulary, context; the last two are the smallest and the largest GPT-2."""


def _flops_per_token(
    layers: int, width: int, vocabulary: int, context: int, *, passes: int = 3
) -> int:
    weights = 12 * layers * width**2 + vocabulary * width
    return passes * (2 * weights + 4 * layers * context * width)


def _without_attention(layers: int, width: int, vocabulary: int, context: int) -> int:
    return 6 * (12 * layers * width**2 + vocabulary * width)


def _without_output(layers: int, width: int, vocabulary: int, context: int) -> int:
    return 6 * 12 * layers * width**2 + 12 * layers * context * width


def _embedding_as_product(layers: int, width: int, vocabulary: int, context: int) -> int:
    return _flops_per_token(layers, width, 2 * vocabulary, context)


def _positions_as_product(layers: int, width: int, vocabulary: int, context: int) -> int:
    return _flops_per_token(layers, width, vocabulary + context, context)


def _weights_once(layers: int, width: int, vocabulary: int, context: int) -> int:
    return _flops_per_token(layers, width, vocabulary, context) // 2


# --- batch_for_saving: from which batch on a saving is reached ---------------------------------

_MEMORY = [
    # fixed and per sequence in float32, fixed and per sequence in mixed precision, saving
    (100, 20, 110, 10, 0.3),
    (100, 20, 100, 20, 0.0),
    (16, 8, 18, 4, 0.4),
    (16, 8, 18, 4, 0.5),
    (16, 8, 18, 4, 0.0),
    (100, 30, 120, 20, 0.4),
    (100, 20, 110, 10, 0.25),
    (10, 90, 11, 40, 0.4),
]
"""In whole units, so that every answer is exact."""


def _batch_for_saving(
    fixed: int, each: int, mixed_fixed: int, mixed_each: int, saving: float
) -> int | None:
    for batch in range(1, 10_000):
        full, mixed = fixed + each * batch, mixed_fixed + mixed_each * batch
        if mixed <= (1 - saving) * full + 1e-9:
            return batch
    return None


def _only_activations(
    fixed: int, each: int, mixed_fixed: int, mixed_each: int, saving: float
) -> int | None:
    return 1 if mixed_each <= (1 - saving) * each + 1e-9 else None


def _fixed_is_the_same(
    fixed: int, each: int, mixed_fixed: int, mixed_each: int, saving: float
) -> int | None:
    return _batch_for_saving(fixed, each, fixed, mixed_each, saving)


def _of_the_mixed(
    fixed: int, each: int, mixed_fixed: int, mixed_each: int, saving: float
) -> int | None:
    return _batch_for_saving(fixed, each, mixed_fixed, mixed_each, saving / (1 + saving))


def _one_less(
    fixed: int, each: int, mixed_fixed: int, mixed_each: int, saving: float
) -> int | None:
    found = _batch_for_saving(fixed, each, mixed_fixed, mixed_each, saving)
    return None if found is None else max(0, found - 1)


# --- mfu: of a data sheet that counts zeros ----------------------------------------------------

_H100 = {name: peak / 1e12 for name, peak in GPUS["H100 SXM"].dense_peaks.items()}
_RATES = [
    # tokens a second, million operations a token, teraflops on the sheet, what the sheet says
    (1000, 1000, 10.0, "dense"),
    (500_000, 855, _H100["bfloat16"], "dense"),
    (500_000, 855, 2 * _H100["bfloat16"], "with sparsity"),
    (20_000, 855, _H100["float32"], "dense"),
]


def _mfu(tokens: int, megaflops: int, teraflops: float, sheet: str) -> float:
    dense = teraflops / 2 if sheet == "with sparsity" else teraflops
    return round(100 * tokens * megaflops * 1e6 / (dense * 1e12), 1)


# --- perplexity_change -------------------------------------------------------------------------

_LOSSES = [(3.0, 0.0), (3.0, 0.1), (3.0, 0.003), (3.0, 0.001), (10.8, 0.003), (1.0, 0.003)]


def _perplexity_change(loss: float, relative: float) -> float:
    return round(100 * math.expm1(loss * relative), 2)


EXERCISES = {
    "flops_per_token": Exercise(
        inputs=lambda: _SHAPES,
        solution=_flops_per_token,
        misconceptions={
            "That is the forward pass. The backward pass has two products for each of these.": (
                lambda *shape: _flops_per_token(*shape, passes=1)
            ),
            "The backward pass has two products for each of the forward pass: one for the "
            "gradient of the weights, one for that of the inputs.": (
                lambda *shape: _flops_per_token(*shape, passes=2)
            ),
            "A multiplication and an addition count as two.": _weights_once,
            "Attention has products without weights: queries with keys, and their softmax with "
            "values, each over the whole context.": _without_attention,
            "The output layer multiplies too: its matrix is the embedding's, used again.": (
                _without_output
            ),
            "The embedding looks a row up; it multiplies nothing. Its matrix counts once, at the "
            "output.": _embedding_as_product,
            "Positions are looked up and added; they multiply nothing.": _positions_as_product,
        },
        describe=lambda layers, width, vocabulary, context: (
            f"layers={layers}, width={width}, vocabulary={vocabulary}, context={context}"
        ),
    ),
    "batch_for_saving": Exercise(
        inputs=lambda: _MEMORY,
        solution=_batch_for_saving,
        misconceptions={
            "What stays whatever the batch counts too: weights, gradients and optimizer state.": (
                _only_activations
            ),
            "Mixed precision has a fixed cost of its own: the 16-bit casts of the weights.": (
                _fixed_is_the_same
            ),
            "40% less is a fraction of the float32 total, not of the mixed one.": _of_the_mixed,
            "There the saving is not reached yet; round up.": _one_less,
        },
        describe=lambda fixed, each, mixed_fixed, mixed_each, saving: (
            f"{fixed} + {each} n against {mixed_fixed} + {mixed_each} n and a saving of {saving},"
        ),
    ),
    "mfu": Exercise(
        inputs=lambda: _RATES,
        solution=_mfu,
        misconceptions={
            "A figure with sparsity counts operations on zeros that are skipped: the dense peak is "
            "half of it.": lambda tokens, mega, tera, sheet: _mfu(tokens, mega, tera, "dense"),
            "Half of the peak is for figures with sparsity only.": (
                lambda tokens, mega, tera, sheet: _mfu(tokens, mega, tera, "with sparsity")
            ),
            "Answer in percent.": lambda *rate: round(_mfu(*rate) / 100, 3),
        },
        describe=lambda tokens, mega, tera, sheet: (
            f"{tokens:,} tokens/s of {mega} million operations and {tera} teraflops {sheet}"
        ),
    ),
    "perplexity_change": Exercise(
        inputs=lambda: _LOSSES,
        solution=_perplexity_change,
        misconceptions={
            "Perplexity is exp(loss), so a difference of losses is a ratio of perplexities.": (
                lambda loss, relative: round(100 * relative, 2)
            ),
            "The loss differs by loss * relative nats, not by relative.": (
                lambda loss, relative: round(100 * math.expm1(relative), 2)
            ),
            "That is the first term of the exponential; the change grows faster.": (
                lambda loss, relative: round(100 * loss * relative, 2)
            ),
        },
        describe=lambda loss, relative: f"a loss of {loss:g} that rises by {100 * relative:g}%",
    ),
}
