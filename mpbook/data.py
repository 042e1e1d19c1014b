"""Real data that every reader has on disk: nothing is downloaded.

* `digits`: 1797 handwritten digits of 8 x 8 pixels, which come with scikit-learn;
* `standard_library`: the source code of Python's own standard library, as a corpus of bytes;
* `identifiers`: the names in it, to predict which of them occur in the next lines;
* `python_manual`: the chapters of Python's manual that `help()` shows: English, to fine-tune on.

All give random batches under an explicit generator that lives on the CPU, so that a seed means
the same batches on every device.  Bring your own data as `Examples`, or as any object with their
methods.
"""

from __future__ import annotations

import functools
import itertools
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mpbook.nests import length, mapped

Batch = tuple[Any, Any]
"""Inputs and targets: tensors, or nests of them (`mpbook.nests`)."""


class Data(Protocol):
    """What a training run needs of its data."""

    @property
    def name(self) -> str:
        """How a `Run` calls it."""

    @property
    def items_per_example(self) -> int:
        """What throughput counts: tokens of a sequence, or 1 for an image."""

    def to(self, device: torch.device) -> Data:
        """The same data on a device."""

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A random batch of inputs and targets, drawn by a CPU generator."""

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """Batches of held-out examples, the same on every call."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples held in memory: inputs of shape (n, ...) and targets of shape (n, ...).

    Args:
        inputs, targets: the training set; n examples each.  A tuple, a dict or a dataclass of
            tensors will do too: the model gets a tuple by position and a dict by name.
        validation_inputs, validation_targets: the held-out set; may be empty.
        name: how a `Run` calls it.

    Raises:
        ValueError: no training example, or inputs and targets of different lengths.
    """

    inputs: Any
    targets: Any
    validation_inputs: Any = None
    validation_targets: Any = None
    name: str = "examples"
    items_per_example: int = 1

    def __post_init__(self) -> None:
        if length(self.inputs) == 0:
            raise ValueError(f"inputs: {self.name} has no examples; expected at least one")
        for part in ("", "validation_"):
            inputs, targets = (getattr(self, part + name) for name in ("inputs", "targets"))
            counts = [0 if nest is None else length(nest) for nest in (inputs, targets)]
            if (inputs is None) != (targets is None) or counts[0] != counts[1]:
                raise ValueError(
                    f"{part}targets: {counts[1]} for {counts[0]} {part}inputs, "
                    "expected one target for each input"
                )

    def to(self, device: torch.device) -> Examples:
        """The same examples on a device."""
        names = ("inputs", "targets", "validation_inputs", "validation_targets")
        moved: Any = {n: mapped(lambda t: t.to(device), getattr(self, n)) for n in names}
        return replace(self, **moved)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch drawn with replacement."""
        chosen = torch.randint(length(self.inputs), (batch_size,), generator=generator)
        return self._part(chosen, (self.inputs, self.targets))

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """All held-out examples in order."""
        if self.validation_inputs is None or self.validation_targets is None:
            return
        for start in range(0, length(self.validation_inputs), batch_size):
            part = slice(start, start + batch_size)
            yield self._part(part, (self.validation_inputs, self.validation_targets))

    @staticmethod
    def _part(chosen: Tensor | slice, batch: Batch) -> Batch:
        def take(t: Tensor) -> Tensor:
            return t[chosen.to(t.device) if isinstance(chosen, Tensor) else chosen]

        part: Batch = mapped(take, batch)
        return part


@dataclass(frozen=True, eq=False)
class ByteCorpus:
    """A text as bytes, to predict each next byte from those before it.

    Args:
        text: uint8 tensor of shape (n,).
        sequence_length: tokens of one example.
        name: how a `Run` calls it.
        validation_fraction: how much of the end of the text is held out.
        validation_batches: how many batches of it `validation` gives.

    Raises:
        ValueError: a text that is too short for one training and one validation sequence, or is
            no sequence of integers; a fraction that is not between 0 and 1.
    """

    text: Tensor
    sequence_length: int
    name: str = "bytes"
    validation_fraction: float = 0.05
    validation_batches: int = 8

    def __post_init__(self) -> None:
        if self.text.dim() != 1 or self.text.is_floating_point():
            kind = f"{self.text.dtype} of shape {tuple(self.text.shape)}"
            raise ValueError(f"text: {kind}, expected uint8 of shape (n,)")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction}: expected a number between 0 and 1"
            )
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length={self.sequence_length}: expected at least 1")
        held_out = len(self.text) - self._boundary
        if min(self._boundary, held_out) <= self.sequence_length:
            raise ValueError(
                f"text: {len(self.text)} bytes are too few for sequence_length="
                f"{self.sequence_length} with {self.validation_fraction:.0%} of them held out"
            )

    @property
    def items_per_example(self) -> int:
        """Tokens of one example."""
        return self.sequence_length

    @property
    def _boundary(self) -> int:
        return int(len(self.text) * (1 - self.validation_fraction))

    def to(self, device: torch.device) -> ByteCorpus:
        """The same corpus on a device."""
        return replace(self, text=self.text.to(device))

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Sequences from random places of the training part: int64 of shape (batch, length)."""
        return self._windows(0, self._boundary, batch_size, generator)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """Sequences from fixed random places of the held-out part."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.validation_batches):
            yield self._windows(self._boundary, len(self.text), batch_size, generator)

    def _windows(self, low: int, high: int, batch_size: int, generator: torch.Generator) -> Batch:
        last_start = high - self.sequence_length  # a window is one byte longer than its inputs
        starts = torch.randint(low, last_start, (batch_size, 1), generator=generator)
        places = starts + torch.arange(self.sequence_length + 1)
        window = self.text[places.to(self.text.device)].long()
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def digits(*, images: bool = False, validation_examples: int = 360) -> Examples:
    """Scikit-learn's handwritten digits, shuffled once and split.

    Args:
        images: give inputs the shape (n, 1, 8, 8) that a `CNN` takes, else (n, 64).
        validation_examples: how many of the 1797 are held out.

    Returns:
        float32 inputs of zero mean, scaled from 0..16 to a range of 1; int64 targets 0 to 9.

    Raises:
        ValueError: a split that leaves no training example.
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = 'the digits come with scikit-learn: pip install "mpbook[notebook]"'
        raise ImportError(message) from error
    pixels, labels = load_digits(return_X_y=True)
    if not 0 <= validation_examples < len(pixels):
        raise ValueError(
            f"validation_examples={validation_examples}: expected 0 to {len(pixels) - 1}"
        )
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1234))
    x = torch.tensor(pixels / 16, dtype=torch.float32)[order]
    y = torch.tensor(labels, dtype=torch.int64)[order]
    x = x.reshape(-1, 1, 8, 8) if images else x
    split = len(x) - validation_examples
    x = x - x[:split].mean()
    return Examples(x[:split], y[:split], x[split:], y[split:], name="digits")


def standard_library(*, sequence_length: int = 64, megabytes: float | None = None) -> ByteCorpus:
    """The source of Python's standard library, without its tests, as a corpus of bytes.

    About 10 MB on every machine that runs Python.  Versions of Python differ, so hold results to
    tolerances, not digits.

    Args:
        sequence_length: tokens of one example.
        megabytes: read only about so much, from modules spread over the whole library.

    Raises:
        ValueError: megabytes that are not positive.
        RuntimeError: this Python carries no source files.
    """
    if megabytes is not None and not megabytes > 0:
        raise ValueError(f"megabytes={megabytes}: expected a positive number, or None for all")
    text = _standard_library_bytes(megabytes)
    tensor = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return ByteCorpus(tensor, sequence_length, name="standard library")


def identifiers(
    *, vocabulary: int = 4096, lines: int = 20, longest: int = 64, megabytes: float | None = 3.0
) -> Examples:
    """Which identifiers occur in the next lines of Python's source, given those in these lines.

    One example is a passage of the standard library: its inputs are the different identifiers of
    two letters and more in it, its targets say of every word of the vocabulary whether it occurs in
    the passage that follows.  About one label in a hundred is true.  The last tenth of the passages
    is held out, and the vocabulary is that of the others.

    Args:
        vocabulary: how many of the most frequent identifiers to know.
        lines: of a passage.
        longest: how many identifiers of a passage to give as inputs at most, the commonest first.
        megabytes: as for `standard_library`.

    Returns:
        int64 inputs of shape (n, longest), words by rank from 0, filled up with the number
        ``vocabulary``, the ``padding_idx`` for an `torch.nn.EmbeddingBag`; bool targets of shape
        (n, vocabulary).

    Raises:
        ValueError: a count below 1, megabytes that are not positive, or too little text for the
            vocabulary.
        RuntimeError: this Python carries no source files.
    """
    for name, count in {"vocabulary": vocabulary, "lines": lines, "longest": longest}.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")
    corpus = standard_library(sequence_length=1, megabytes=megabytes)
    passages = _passages(bytes(corpus.text.numpy()).decode("utf-8", "replace"), lines)
    split = int(0.9 * (len(passages) - 1))
    counts = Counter(word for passage in passages[:split] for word in passage)
    if len(counts) < vocabulary:
        raise ValueError(
            f"vocabulary={vocabulary}: the training part has only {len(counts)} identifiers; "
            "expected at most that, or more megabytes"
        )
    ranks = {word: rank for rank, (word, _) in enumerate(counts.most_common(vocabulary))}
    bags = [sorted(ranks[word] for word in passage if word in ranks) for passage in passages]
    inputs = torch.full((len(bags) - 1, longest), vocabulary)
    targets = torch.zeros(len(bags) - 1, vocabulary, dtype=torch.bool)
    for row, (bag, following) in enumerate(itertools.pairwise(bags)):
        inputs[row, : len(bag)] = torch.tensor(bag[:longest], dtype=torch.int64)
        targets[row, following] = True
    parts = inputs[:split], targets[:split], inputs[split:], targets[split:]
    return Examples(*parts, name="identifiers")


def _passages(text: str, lines: int) -> list[list[str]]:
    """The different identifiers of every so many lines, in the order of their first use."""
    rows = text.split("\n")
    starts = range(0, len(rows), lines)
    found = (re.findall(r"[A-Za-z_]\w+", "\n".join(rows[k : k + lines])) for k in starts)
    return [list(dict.fromkeys(words)) for words in found]


def python_manual(*, sequence_length: int = 64) -> ByteCorpus:
    """The chapters of Python's own manual that ``help()`` shows, as a corpus of bytes.

    About 0.7 MB of English.  Not a byte of it is in `standard_library`, so a model that was trained
    there can be fine-tuned here.  Versions of Python differ, so hold results to tolerances, not
    digits.

    Args:
        sequence_length: tokens of one example.

    Raises:
        RuntimeError: this Python carries no such text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError(
            "no module pydoc_data.topics: this Python was installed without the text of help()"
        ) from error
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    tensor = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return ByteCorpus(tensor, sequence_length, name="Python manual")


_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
_LEFT_OUT |= {"__phello__", "pydoc_data", "turtledemo", "config"}


@functools.cache
def _standard_library_bytes(megabytes: float | None) -> bytes:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in root.rglob("*.py") if not _LEFT_OUT & set(f.relative_to(root).parts)]
    files.sort(key=lambda f: f.relative_to(root).as_posix())
    total = sum(f.stat().st_size for f in files)
    if total == 0:
        raise RuntimeError(f"no Python source under {root}: this Python was installed without it")
    every = 1 if megabytes is None else max(1, round(total / (megabytes * 1e6)))
    return b"\n".join(f.read_bytes() for f in files[::every])
