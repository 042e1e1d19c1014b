"""The names that people type for formats and precisions, and what they are called in `mpbook`.

Formats have the names of torch and ml_dtypes here, precisions those of Lightning.  Who types
``fp16`` gets the name that would be right, wherever a name is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_GROUPS = tuple(
    frozenset(group.split())
    for group in (
        "float32 fp32 f32 float single 32 32-true fp32-true",
        "tfloat32 tf32 tensorfloat32 tensorfloat-32",
        "float16 fp16 f16 half 16 ieee-half",
        "bfloat16 bf16 bf-16 brain bfloat",
        "float8_e4m3fn fp8 f8 float8 e4m3 e4m3fn fp8-e4m3 float8-e4m3 float8-e4m3fn",
        "float8_e5m2 e5m2 fp8-e5m2 float8-e5m2 bf8",
        "float6_e2m3fn fp6 float6 e2m3 fp6-e2m3",
        "float6_e3m2fn e3m2 fp6-e3m2",
        "float4_e2m1fn fp4 f4 float4 e2m1 fp4-e2m1",
        "float8_e8m0fnu e8m0 ue8m0 fp8-e8m0",
        "16-mixed fp16-mixed float16-mixed mixed-fp16 mixed-float16 amp mixed",
        "bf16-mixed bfloat16-mixed mixed-bf16 mixed-bfloat16 amp-bf16",
        "16-true fp16-true float16-true pure-fp16",
        "bf16-true bfloat16-true pure-bf16",
        "nvfp4 nv-fp4 fp4",
        "mxfp4 mx-fp4 fp4",
        "mxfp8_e4m3 mxfp8 mx-fp8 fp8",
    )
)


def did_you_mean(typed: object, known: Iterable[str]) -> str:
    """The end of an error message: the known name that was probably meant; empty if none is near.

    >>> did_you_mean("FP16", ["float32", "float16"])
    "; did you mean 'float16'?"
    >>> did_you_mean("elephant", ["float32", "float16"])
    ''
    """
    near = meant(typed, known)
    return f"; did you mean {near!r}?" if near else ""


def meant(typed: object, known: Iterable[str]) -> str:
    """The known name that was probably meant; empty if none is near.

    >>> meant("fp16", ["float32", "float16"])
    'float16'
    """
    choices = list(known)
    word = str(typed).lower().replace("_", "-").removeprefix("torch.")
    groups = [group for group in _GROUPS if word in {name.replace("_", "-") for name in group}]
    same = [name for group in groups for name in choices if name.lower() in group]
    # A format that is known, and none of these, is not a slip of the keyboard.
    near = same if groups else difflib.get_close_matches(str(typed), choices, n=1)
    return near[0] if near else ""
