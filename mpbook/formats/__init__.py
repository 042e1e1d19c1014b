"""Number formats, and rounding to them: the one import for all.

* `mpbook.formats.description` says what a format is, and what rounding one number to it means: the
  description and the reference path, in exact rational arithmetic.
* `mpbook.formats.rounding` does the same to whole tensors, about as fast as copying them.  What
  it refuses is in `mpbook.formats.checks`, what a format asks for in
  `mpbook.formats.rounding_plan`, and the arithmetic in `mpbook.formats.rounding_steps`.
* `mpbook.formats.codes` turns tensors into codes and back, `mpbook.formats.bfloat16` by moving
  bits.
* `mpbook.formats.blocks` shares a scale between the numbers of a block.
* `mpbook.formats.sums` adds up in a format.

The tests prove the first two equal, bit by bit.  Taught in the chapter "Precision formats".
"""

from mpbook.formats.bfloat16 import bfloat16_bits, from_bfloat16_bits
from mpbook.formats.block_description import BLOCK_FORMATS, BlockFormat, as_block_format
from mpbook.formats.blocks import Blocks, fake_quantise, quantise, signal_to_noise_db
from mpbook.formats.codes import decode_tensor, encode_tensor, ulp
from mpbook.formats.description import (
    FORMATS,
    FloatFormat,
    Overflow,
    Rounding,
    Specials,
    as_format,
    decode,
    encode,
    fields,
    neighbours,
)
from mpbook.formats.rounding import compiled_round_to, round_to
from mpbook.formats.sums import (
    exact_sum,
    kahan_sum,
    kahan_sums,
    pairwise_sum,
    running_sum,
    running_sums,
)

__all__ = [
    "BLOCK_FORMATS",
    "FORMATS",
    "BlockFormat",
    "Blocks",
    "FloatFormat",
    "Overflow",
    "Rounding",
    "Specials",
    "as_block_format",
    "as_format",
    "bfloat16_bits",
    "compiled_round_to",
    "decode",
    "decode_tensor",
    "encode",
    "encode_tensor",
    "exact_sum",
    "fake_quantise",
    "fields",
    "from_bfloat16_bits",
    "kahan_sum",
    "kahan_sums",
    "neighbours",
    "pairwise_sum",
    "quantise",
    "round_to",
    "running_sum",
    "running_sums",
    "signal_to_noise_db",
    "ulp",
]
