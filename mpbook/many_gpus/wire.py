"""What an all-reduce sends: bytes, messages in a row, and the least time on a wire.

Each algorithm adds up, then hands out.  Ring and halving cut the tensor, so that a rank sends
``(ranks - 1) / ranks`` of it twice, however many ranks there are; the ring in many small messages,
halving in few.  The tree of `mpbook.many_gpus.reductions` sends the whole tensor from level to
level.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

from dataclasses import dataclass

from mpbook.many_gpus.reductions import Algorithm, additions


@dataclass(frozen=True)
class OnTheWire:
    """One all-reduce, seen from the rank that sends the most.

    ``bytes`` is what that rank sends, ``messages`` how many follow one another from the first
    part to the last rank that gets the sum, and ``in_a_row`` the bytes of those.
    """

    bytes: float
    messages: int
    in_a_row: float

    def seconds(self, bytes_per_second: float) -> float:
        """The least time on wires of that rate in each direction: no latency, no additions.

        Raises:
            ValueError: a rate that is not above 0.
        """
        if not bytes_per_second > 0:
            raise ValueError(f"bytes_per_second={bytes_per_second}: expected more than 0")
        return self.in_a_row / bytes_per_second


def on_the_wire(
    ranks: int, elements: int, *, element_bytes: int, algorithm: Algorithm = "ring"
) -> OnTheWire:
    """What an all-reduce of so many elements sends.

    NCCL pipelines its trees, so that they take less time than these, whose levels wait for each
    other.

    Raises:
        ValueError: an algorithm that does not run on so many ranks, less than one byte, or a
            negative number of elements.

    Source: Thakur, Rabenseifner and Gropp 2005, sections 4.4 and 4.5.

    >>> on_the_wire(4, 1000, element_bytes=2)
    OnTheWire(bytes=3000.0, messages=6, in_a_row=3000.0)
    >>> on_the_wire(4, 1000, element_bytes=2, algorithm="tree")
    OnTheWire(bytes=4000.0, messages=4, in_a_row=8000.0)
    """
    messages = 2 * additions(ranks, algorithm)
    if elements < 0 or element_bytes < 1:
        raise ValueError(
            f"elements={elements}, element_bytes={element_bytes}: expected at least 0 and 1"
        )
    whole = float(elements * element_bytes)
    if algorithm == "tree":
        return OnTheWire(messages / 2 * whole, messages, messages * whole)
    sent = 2 * (ranks - 1) * whole / ranks
    return OnTheWire(sent, messages, sent)
