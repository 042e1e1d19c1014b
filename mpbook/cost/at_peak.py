"""The bytes of a planned training step, and the moment at which they are most.

Training holds two kinds of memory.  What stays from step to step grows with the *parameters*: the
weights, what an update keeps beside them, and the optimizer's state; gradients join them in each
backward pass.  What comes and goes within a step grows with the *tokens*: the tensors that autograd
saves for the backward pass, and on top of them, for a moment, the logits and their gradient.

Taught in the chapter "Memory".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mpbook.cost.device_room import RESERVE, fits_on
from mpbook.cost.measure import Memory
from mpbook.cost.rank_memory import Exchange
from mpbook.cost.saved_tensors import SavedTensor
from mpbook.notebook import Table


class AtPeak:
    """What a plan says of its peak, by formula or measured: of what it is, which GPUs hold it."""

    parameter_count: int

    @property
    def peak(self) -> int:
        """The most bytes held at once."""
        raise NotImplementedError

    @property
    def at_peak(self) -> dict[str, int]:
        """The categories at the moment of the peak, which sum up to it."""
        raise NotImplementedError

    def fits_on(self, *, reserve: float = RESERVE) -> dict[str, bool]:
        """For each of `mpbook.cost.device_room.DEVICE_GIB`, whether the peak leaves the reserve.

        Raises:
            ValueError: a reserve that is no share.
        """
        return fits_on(self.peak, reserve=reserve)

    def table(self) -> Table:
        """The categories at the peak, in megabytes and in bytes a parameter."""
        rows = [
            (name, round(count / 1e6, 1), round(count / self.parameter_count, 2))
            for name, count in (*self.at_peak.items(), ("together", self.peak))
            if count
        ]
        title, caption = self._words()
        return Table([title, "MB", "bytes a parameter"], rows, caption=caption)

    def _words(self) -> tuple[str, str]:
        """The first title of the table, and its caption."""
        return "at the peak", ""

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@dataclass(frozen=True, repr=False)
class MemoryPlan(AtPeak):
    """The bytes of one training step, and the moment at which they are most.

    ``saved`` is what autograd keeps, tensor by tensor.  ``held_gradients`` are those of earlier
    micro-batches, which stay through the passes of the next; none without accumulation.  The
    temporaries are what comes on top for a moment: two gradients as large as the logits when the
    backward pass begins; the gradients of the last block's GELU, less what is freed by then; and
    what the optimizer's step allocates, or the backward pass just before it for the matrix that
    embedding and output share.

    The loss is planned as `mpbook.training.loss_of` computes it, in eager mode: on float32 logits,
    of which the caller keeps none.  A loop whose variable ``logits`` lives until the backward pass
    holds them as well, in the dtype of the products.

    On several ranks, the plan is of one of them.  ``buckets`` are DDP's, which stay;
    ``gathered_at_loss`` and ``gathered_at_block`` are weights that ``fully_shard`` has put together
    for a while, and ``exchanges`` the moments at which it gathers weights and adds gradients up.
    ``layers`` says how many blocks there are.
    """

    parameter_count: int
    parameters: int
    master_copies: int
    gradients: int
    held_gradients: int
    optimizer_state: int
    saved: tuple[SavedTensor, ...] = field(repr=False)
    loss_temporaries: int
    block_temporaries: int
    update_temporaries: int
    buckets: int = 0
    gathered_at_loss: int = 0
    gathered_at_block: int = 0
    exchanges: tuple[Exchange, ...] = field(default=(), repr=False)
    layers: int = 1

    @property
    def weight_casts(self) -> int:
        """Bytes of the 16-bit weights that autocast makes and autograd keeps."""
        return sum(t.bytes for t in self.saved if t.is_weight_cast)

    @property
    def activations(self) -> int:
        """Bytes saved for the backward pass, but for the casts of weights."""
        return sum(t.bytes for t in self.saved if not t.is_weight_cast)

    @property
    def memory(self) -> Memory:
        """The categories that `mpbook.training.train` counts in ``Run.memory``."""
        return Memory(
            parameters=self.parameters,
            master_copies=self.master_copies,
            gradients=self.gradients,
            optimizer_state=self.optimizer_state,
            saved_for_backward=self.weight_casts + self.activations,
        )

    @property
    def kept(self) -> int:
        """Bytes that stay from one step to the next, once the gradients are set to None."""
        return sum(self._kept.values())

    @property
    def peak_at_loss(self) -> int:
        """Bytes held when the backward pass begins."""
        return sum(self._at_loss.values())

    @property
    def peak_at_block(self) -> int:
        """Bytes held when the backward pass is at the last block's GELU."""
        return sum(self._at_block.values())

    @property
    def peak_at_update(self) -> int:
        """Bytes held at the end of the backward pass and in the optimizer's step."""
        return sum(self._at_update.values())

    @property
    def peak(self) -> int:
        """The largest of these moments: exact to about 1%, with checkpointing to 7%.

        On several ranks to 5%: what two of them allocated on a CPU.
        """
        return sum(self.at_peak.values())

    @property
    def moment(self) -> str:
        """When the peak is."""
        moments = self._moments
        return max(moments, key=lambda moment: sum(moments[moment].values()))

    @property
    def at_peak(self) -> dict[str, int]:
        """The categories at the moment of the peak, which sum up to it."""
        return self._moments[self.moment]

    @property
    def _moments(self) -> dict[str, dict[str, int]]:
        """Bytes by category; of moments that are equal the first counts."""
        return {
            "the update": self._at_update,
            "the loss": self._at_loss,
            "the last block": self._at_block,
            "the gather": self._at_exchange("the gather"),
            "the reduction": self._at_exchange("the reduction"),
        }

    @property
    def _kept(self) -> dict[str, int]:
        return {
            "parameters": self.parameters,
            "master copies": self.master_copies,
            "optimizer state": self.optimizer_state,
            "reduce buffers": self.buckets,
        }

    @property
    def _at_update(self) -> dict[str, int]:
        now = {"gradients": self.gradients, "update, for a moment": self.update_temporaries}
        return self._kept | now

    @property
    def _at_loss(self) -> dict[str, int]:
        return self._in_backward(self.gathered_at_loss, self.loss_temporaries)

    @property
    def _at_block(self) -> dict[str, int]:
        return self._in_backward(self.gathered_at_block, self.block_temporaries)

    def _in_backward(self, gathered: int, temporaries: int) -> dict[str, int]:
        return self._kept | {
            "gradients": self.held_gradients,
            "gathered weights": gathered,
            "weight casts": self.weight_casts,
            "activations": self.activations,
            "backward, for a moment": temporaries,
        }

    def _at_exchange(self, name: str) -> dict[str, int]:
        """Of the exchanges of this name, the largest; nothing without any."""
        of_a_block = sum(t.bytes // t.copies for t in self.saved if t.copies == self.layers)
        moments = [
            self._kept
            | {
                "gradients": self.held_gradients or moment.gradients,
                "gathered weights": moment.gathered,
                "activations": moment.blocks * of_a_block,
                "reduce buffers": moment.buffers,
            }
            for moment in self.exchanges
            if moment.moment == name
        ]
        return max(moments, key=lambda moment: sum(moment.values()), default={})
