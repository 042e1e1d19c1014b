"""Random bits from a counter: element i of a tensor gets ``hash(i, keys)``.

An ordinary generator is a chain: each number needs the one before.  A *counter-based* one has no
state, so every element is computed by itself, in any order: block by block or at once, eager or
fused into a compiled loop, on a CPU or on a GPU, always the same bits (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011).

The hash multiplies by an odd constant, which carries each bit into all higher ones, and then folds
the high half onto the low one, so that the next product spreads those bits as well.  Three
products, with the constants of Wellons' *triple32*, pass the tests that two do not.  The last bits
of the last product are never folded: use the upper ones.  Stochastic rounding draws from here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FACTORS = [factor - 2**32 for factor in (0xED5AD4BB, 0xAC4C1B51)] + [0x31848BAB]  # as int32


def draw_keys(generator: torch.Generator) -> Tensor:
    """The keys of one call, from the generator and on its device."""
    seed = torch.randint(
        -(2**31), 2**31, (2,), generator=generator, dtype=torch.int32, device=generator.device
    )
    return keys_of(seed)


def keys_of(seed: Tensor) -> Tensor:
    """Two int32 keys for a seed of two int32 words; neighbouring seeds get unrelated keys."""
    counters = torch.arange(1, 3, dtype=torch.int32, device=seed.device)
    return hash_counters_(counters, seed, torch.empty_like(counters))


def hash_counters_(counters: Tensor, keys: Tensor, scratch: Tensor) -> Tensor:
    """Turn int32 counters into random bits, in place; the upper bits are the best.

    Args:
        counters: int32 tensor.
        keys: from `draw_keys`.  The first permutes the counters; by itself it would give any two
            calls the same numbers at other places, so the second is added between the products.
        scratch: int32 tensor of the same shape, to be overwritten.
    """
    counters.bitwise_xor_(keys[0]).mul_(_FACTORS[0])
    _fold_(counters, 16, scratch).add_(keys[1]).mul_(_FACTORS[1])
    return _fold_(counters, 15, scratch).mul_(_FACTORS[2])


def _fold_(bits: Tensor, shift: int, scratch: Tensor) -> Tensor:
    """``bits ^= bits >> shift``, where zeros move in and not copies of the sign bit."""
    torch.bitwise_right_shift(bits, shift, out=scratch)
    return bits.bitwise_xor_(scratch.bitwise_and_(2 ** (32 - shift) - 1))
