"""Number formats, and rounding to them: the one import for all.

* `mpbook.float_format` says what a format is, and what rounding one number to it means: the
  description and the reference path, in exact rational arithmetic.
* `mpbook.rounding` does the same to whole tensors, about as fast as copying them.
* `mpbook.codes` turns tensors into codes and back.

The tests prove the two equal, bit by bit.  Taught in the chapter "Precision formats".
"""

from mpbook.codes import decode_tensor, encode_tensor, ulp
from mpbook.float_format import (
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
from mpbook.rounding import compiled_round_to, round_to

__all__ = [
    "FORMATS",
    "FloatFormat",
    "Overflow",
    "Rounding",
    "Specials",
    "as_format",
    "compiled_round_to",
    "decode",
    "decode_tensor",
    "encode",
    "encode_tensor",
    "fields",
    "neighbours",
    "round_to",
    "ulp",
]
