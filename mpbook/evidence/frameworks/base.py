"""A question about one setting of a library, and how dtypes and bytes are told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Facts = dict[str, Any]
"""What came out: names of dtypes, bytes for each parameter, messages.  JSON holds it."""


@dataclass(frozen=True)
class Question:
    """One setting of one library, tried on a tiny model.

    ``run`` gets an empty folder, and returns what it found.
    """

    library: str
    what: str
    options: dict[str, Any]
    run: Callable[[Path], Facts]

    @property
    def case(self) -> dict[str, Any]:
        """By which a record finds it."""
        return {"library": self.library, "what": self.what, **self.options}


def name(dtype: torch.dtype) -> str:
    """Of a dtype, as the book writes it.

    >>> name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtypes(tensors: Iterable[torch.Tensor]) -> str:
    """The dtypes of the floating-point tensors among these, in order of the alphabet.

    >>> dtypes([torch.ones(2), torch.ones(2).half(), torch.tensor(1)])
    'float16, float32'
    """
    return ", ".join(sorted({name(t.dtype) for t in tensors if t.is_floating_point()}))


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all elements.

    >>> size([torch.ones(3), torch.ones(2).half()])
    16
    """
    return sum(t.numel() * t.element_size() for t in tensors)


def tensors_in(state: Any) -> list[torch.Tensor]:
    """The tensors of more than one element in nested dictionaries and lists: no step counters."""
    if isinstance(state, torch.Tensor):
        return [state] if state.numel() > 1 else []
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return [tensor for part in state for tensor in tensors_in(part)]
    return []


def message_of(action: Callable[[], object]) -> str:
    """The name and the first line of the error that this raises, or ``"no error"``."""
    try:
        action()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return "no error"


def source_digest() -> str:
    """SHA-256 of the files that hold the questions, shortened to 12 digits."""
    folder = Path(__file__).parent
    text = "".join((folder / f"{n}.py").read_text("utf-8") for n in ("base", "models", *MEASURING))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


MEASURING = ("hugging_face", "lightning_precision")
"""The modules with the questions."""
