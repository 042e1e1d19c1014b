"""The exercises of the chapter "Autocast", and the ways people get them wrong."""

from __future__ import annotations

from mpbook.exercises._checking import Exercise

Layer = tuple[int, int, bool]

# --- cached_bytes: what the weight cache holds ---------------------------------------------------

_MODELS: list[tuple[list[Layer]]] = [
    ([(4, 3, False)],),
    ([(4, 3, True)],),
    ([(8, 8, True), (8, 2, True)],),
    ([(8, 8, False), (8, 2, True)],),
]


def _cached_bytes(layers: list[Layer]) -> int:
    return sum(2 * (i * o + o) for i, o, trains in layers if trains)


# --- weight_casts: how often one weight is cast --------------------------------------------------

_USES = [(1, 1, True), (3, 1, True), (1, 4, True), (3, 4, True), (3, 4, False), (1, 4, False)]


def _weight_casts(uses: int, regions: int, trains: bool) -> int:
    return regions if trains else regions * uses


# --- sum_dtype: promotion inside a region --------------------------------------------------------

_PAIRS = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
    ("float16", "bfloat16"),
]


def _sum_dtype(left: str, right: str) -> str:
    return left if left == right else "float32"


# --- shared_gradient: gradients that meet in the cached copy -------------------------------------

_SHARED = [
    (100, "bfloat16", True),
    (300, "bfloat16", False),
    (3000, "bfloat16", True),
    (300, "float16", True),
    (3000, "float16", False),
    (3000, "float16", True),
]
_STICKS_AT = {"bfloat16": 256, "float16": 2048}


def _shared_gradient(uses: int, dtype: str, cached: bool) -> float:
    return float(min(uses, _STICKS_AT[dtype]) if cached else uses)


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "cached_bytes": Exercise(
        inputs=lambda: _MODELS,
        solution=_cached_bytes,
        misconceptions={
            "A frozen weight is cast at every use and never kept.": (
                lambda layers: sum(2 * (i * o + o) for i, o, _ in layers)
            ),
            "Biases are cast and kept too.": (
                lambda layers: sum(2 * i * o for i, o, trains in layers if trains)
            ),
            "The copies have 16 bits: 2 bytes each.": lambda layers: 2 * _cached_bytes(layers),
            "Nothing is dropped after its use: the cache holds all layers until the region ends.": (
                lambda layers: _cached_bytes(layers[-1:])
            ),
        },
        describe=lambda layers: f"layers={layers}",
    ),
    "weight_casts": Exercise(
        inputs=lambda: _USES,
        solution=_weight_casts,
        misconceptions={
            "Only a weight that trains is cached.": lambda uses, regions, trains: regions,
            "The cache ends with the region: the next one casts again.": (
                lambda uses, regions, trains: 1 if trains else regions * uses
            ),
            "The first use in a region is kept, and the later ones take the copy.": (
                lambda uses, regions, trains: regions * uses
            ),
        },
        describe=lambda uses, regions, trains: (
            f"a {'trained' if trains else 'frozen'} weight, {uses} uses in each of "
            f"{regions} regions"
        ),
    ),
    "sum_dtype": Exercise(
        inputs=lambda: _PAIRS,
        solution=_sum_dtype,
        misconceptions={
            "Neither 16-bit format holds the other's numbers: both are promoted to float32.": (
                lambda left, right: "float32" if "float32" in (left, right) else "bfloat16"
            ),
            "Additions are on no list: autocast does not cast them down.": (
                lambda left, right: "bfloat16"
            ),
            "Nor does it cast them up: two 16-bit operands stay as they are.": (
                lambda left, right: "float32"
            ),
            "The order does not matter: the wider dtype wins.": lambda left, right: left,
        },
        describe=lambda left, right: f"{left} + {right}",
    ),
    "shared_gradient": Exercise(
        inputs=lambda: _SHARED,
        solution=_shared_gradient,
        misconceptions={
            "Without the cache each use has a cast of its own, and they are added in float32.": (
                lambda uses, dtype, cached: float(min(uses, _STICKS_AT[dtype]))
            ),
            "The uses share one 16-bit copy, and their gradients are added there.": (
                lambda uses, dtype, cached: float(uses)
            ),
            "float16 has more digits than bfloat16: it counts further.": (
                lambda uses, dtype, cached: float(min(uses, 256) if cached else uses)
            ),
            "256 is where bfloat16 stops counting; 2048 is float16's.": (
                lambda uses, dtype, cached: float(min(uses, 2048) if cached else uses)
            ),
        },
        describe=lambda uses, dtype, cached: (
            f"{uses} uses with autocast to {dtype}, {'with' if cached else 'without'} the cache"
        ),
    ),
}
