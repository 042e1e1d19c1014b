"""TF32 on or off for a while, and torch's switches as they were afterwards.

Torch has two interfaces for one thing.  The old one is ``torch.backends.cuda.matmul.allow_tf32``,
``torch.backends.cudnn.allow_tf32`` and ``torch.set_float32_matmul_precision``; the new one is a
word for each backend and kind of operation, ``fp32_precision``, of which ``"none"`` means "as the
level above says".  What runs goes by the new words.  The old fields are kept beside them, and
reading one raises a RuntimeError once the two disagree, as they do after
``torch.backends.cuda.matmul.fp32_precision = "tf32"``.

So nothing here reads an old field before it agrees with the new words, and `float32_products` sets
both, so that inside it neither raises.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "TensorFloat-32"; the fields and their
rules are in ``aten/src/ATen/Context.cpp``.  Taught in the chapter "bfloat16".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Key = tuple[str, str]
"""A backend and a kind of operation, as torch names them; ``"cuda"`` is cuBLAS and cuDNN."""

_TOP: Key = ("generic", "all")
_PARENTS: tuple[Key, ...] = (("cuda", "all"), ("mkldnn", "all"))
_PRODUCTS: Key = ("cuda", "matmul")
_CUDNN: tuple[Key, ...] = (("cuda", "conv"), ("cuda", "rnn"))
_CPU: tuple[Key, ...] = (("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"))
_LEAVES: tuple[Key, ...] = (_PRODUCTS, *_CUDNN, *_CPU)


# `torch.backends` offers the same words one by one, but setting
# ``torch.backends.mkldnn.fp32_precision`` writes the level above it.
def _word(key: Key) -> str:
    """What an operation goes by, with the levels above it."""
    return str(torch._C._get_fp32_precision_getter(*key))


def _write(key: Key, word: str) -> None:
    torch._C._set_fp32_precision_setter(*key, word)


def allowed() -> tuple[bool, bool]:
    """Whether TF32 is on, for CUDA's matrix products and for cuDNN's convolutions.

    It never raises, whichever interface was used.
    """
    return _word(_PRODUCTS) == "tf32", _word(_CUDNN[0]) == "tf32"


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """A context in which float32 products, convolutions and RNNs run in TF32, or in full float32.

    Full float32 holds for oneDNN on a CPU too, in either case, where ``fp32_precision = "bf16"`` or
    ``torch.set_float32_matmul_precision("medium")`` would have lowered it.

    Afterwards, and after an exception, all switches are as they were: words, old fields, and which
    of them raise.  One thing cannot be written back: in later versions of torch cuDNN's words begin
    as "tf32, unless a level above says otherwise".  If they had to be changed, they end as what
    that amounts to: "tf32", as after torch's own ``torch.backends.cudnn.flags()``, or where a level
    above says otherwise, "none".
    """
    before = _read()
    for key in _CUDNN:
        if before.words[key] == "tf32" != _word(key):  # overruled from above: a first word
            before.words[key] = "none"
    # cuDNN's first words cannot be written back: leave them alone where nothing is to be changed.
    in_tf32 = before.cudnn and all(_word(key) == "tf32" for key in _CUDNN)
    changed = (_PRODUCTS, *_CPU) if tf32 and in_tf32 else _LEAVES
    _switch(changed, tf32=tf32)
    try:
        yield
    finally:
        _restore(before, changed)


@dataclass(frozen=True)
class _Switches:
    """All that torch keeps: its own words, and the two old fields."""

    words: dict[Key, str]
    matmul_precision: str
    cudnn: bool


def _read() -> _Switches:
    """Each word itself, without the levels above, and the old fields even where they raise."""
    words = {_TOP: _word(_TOP)}
    _write(_TOP, "none")  # nothing above hides what stands below
    for parent in _PARENTS:
        words[parent] = _word(parent)
        _write(parent, "none")
    words |= {leaf: _word(leaf) for leaf in _LEAVES}
    try:
        return _Switches(words, _matmul_precision(words), _cudnn_allows(words))
    finally:
        for key in (_TOP, *_PARENTS):
            _write(key, words[key])


def _matmul_precision(words: dict[Key, str]) -> str:
    """The old field of matrix products; with no word set it has nothing to disagree with."""
    ours = (_PRODUCTS, _CPU[0])
    for key in ours:
        _write(key, "none")
    try:
        return torch.get_float32_matmul_precision()
    finally:
        for key in ours:
            _write(key, words[key])


def _cudnn_allows(words: dict[Key, str]) -> bool:
    """The old field of cuDNN: True if it can be read while all of its words say so."""
    changed = [key for key in _CUDNN if words[key] != "tf32"]
    for key in changed:
        _write(key, "tf32")
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return False
    finally:
        for key in changed:
            _write(key, words[key])


def _switch(leaves: tuple[Key, ...], *, tf32: bool) -> None:
    """Set old fields and words so that they agree."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if _CUDNN[0] in leaves:
        torch.backends.cudnn.allow_tf32 = tf32
    for leaf in leaves:
        _set_leaf(leaf, tf32=tf32 and leaf not in _CPU)


def _set_leaf(leaf: Key, *, tf32: bool) -> None:
    """Write a word, unless what the operation goes by says the same."""
    if _word(leaf) not in (("tf32",) if tf32 else ("ieee", "none")):
        _write(leaf, "tf32" if tf32 else "ieee")


def _restore(before: _Switches, leaves: tuple[Key, ...]) -> None:
    """First the old fields, which change words too, then the words."""
    torch.set_float32_matmul_precision(before.matmul_precision)
    if _CUDNN[0] in leaves:
        torch.backends.cudnn.allow_tf32 = before.cudnn
    for leaf in leaves:
        _write(leaf, before.words[leaf])
