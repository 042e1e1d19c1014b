"""The exercises of the chapter "Memory", and the ways people get them wrong."""

from __future__ import annotations

from mpbook.exercises._checking import Exercise

# --- block_bytes: what a transformer block saves for each token ---------------------------------

_BLOCKS = [
    (64, "32-true"),
    (64, "bf16-true"),
    (64, "bf16-mixed"),
    (768, "bf16-mixed"),
    (1600, "16-mixed"),
]


def _block_bytes(width: int, precision: str) -> int:
    stream = 4 if precision.endswith("mixed") or precision == "32-true" else 2
    compute = 4 if precision == "32-true" else 2
    return (2 * stream + 14 * compute) * width


def _all_halved(width: int, precision: str) -> int:
    return _block_bytes(width, "32-true" if precision == "32-true" else "bf16-true")


# --- autocast_costs_more: one Linear layer under autocast ---------------------------------------

_LAYERS = [
    (4096, 128, 128),
    (64, 128, 128),
    (128, 128, 128),
    (100, 64, 256),
    (200, 64, 512),
    (500, 4096, 256),
]


def _autocast_costs_more(rows: int, inputs: int, outputs: int) -> bool:
    return 2 * rows * inputs + 2 * inputs * outputs > 4 * rows * inputs


def _never(rows: int, inputs: int, outputs: int) -> bool:
    return False


def _by_inputs(rows: int, inputs: int, outputs: int) -> bool:
    return rows < inputs


# --- loss_bytes: the logits when the backward pass begins ----------------------------------------

_LOSSES = [
    (1, 1, 1),
    (8, 1024, 50257),
    (4, 2048, 128256),
]


def _loss_bytes(batch: int, time: int, vocabulary: int) -> int:
    return 12 * batch * time * vocabulary


def _one_16_bit_copy(batch: int, time: int, vocabulary: int) -> int:
    return 2 * batch * time * vocabulary


def _one_float32_copy(batch: int, time: int, vocabulary: int) -> int:
    return 4 * batch * time * vocabulary


def _copy_and_gradient(batch: int, time: int, vocabulary: int) -> int:
    return 8 * batch * time * vocabulary


# --- optimizer_bytes: AdamW's state, in 32 or in 8 bits ------------------------------------------

_STATES = [(4096, 32, 256), (4096, 8, 256), (4096, 8, 2048), (5000, 8, 256), (124439808, 8, 256)]


def _optimizer_bytes(parameters: int, bits: int, block: int) -> int:
    scales = 0 if bits == 32 else -(-parameters // block)
    return 2 * (parameters * bits // 8 + 4 * scales)


def _without_scales(parameters: int, bits: int, block: int) -> int:
    return 2 * parameters * bits // 8


def _one_moment(parameters: int, bits: int, block: int) -> int:
    return _optimizer_bytes(parameters, bits, block) // 2


def _whole_blocks(parameters: int, bits: int, block: int) -> int:
    scales = 0 if bits == 32 else parameters // block
    return 2 * (parameters * bits // 8 + 4 * scales)


EXERCISES = {
    "block_bytes": Exercise(
        inputs=lambda: _BLOCKS,
        solution=_block_bytes,
        misconceptions={
            "That is half of float32. Autocast leaves the residual stream in float32, and\n"
            "the inputs of both norms with it: 4 bytes for those two, 2 for the other 14.": (
                _all_halved
            ),
            "That is what float32 saves.": lambda width, precision: 64 * width,
        },
        describe=lambda width, precision: f'width {width} in "{precision}"',
    ),
    "autocast_costs_more": Exercise(
        inputs=lambda: _LAYERS,
        solution=_autocast_costs_more,
        misconceptions={
            "So you say that autocast always saves memory. Its cast of the weight is kept for the "
            "backward pass too: 2 bytes for each of inputs x outputs.": _never,
            "You compare the rows with the inputs. The weight has inputs x outputs numbers and "
            "the activation rows x inputs, so it is the outputs that decide.": _by_inputs,
        },
        describe=lambda rows, inputs, outputs: f"{rows} rows through Linear({inputs}, {outputs})",
    ),
    "loss_bytes": Exercise(
        inputs=lambda: _LOSSES,
        solution=_loss_bytes,
        misconceptions={
            "That is one copy in 16 bits: what the model returns, and what is gone by then.": (
                _one_16_bit_copy
            ),
            "That is one float32 copy, the log-probabilities. The backward pass adds two more: "
            "the gradients of the log-probabilities and of the logits.": _one_float32_copy,
            "That is two float32 copies. The gradient of the log-probabilities and that of the "
            "logits exist at once, beside the log-probabilities themselves.": _copy_and_gradient,
        },
        describe=lambda *sizes: "batch {}, {} tokens, vocabulary {:,}".format(*sizes),
    ),
    "optimizer_bytes": Exercise(
        inputs=lambda: _STATES,
        solution=_optimizer_bytes,
        misconceptions={
            "You left out the scales: a float32 for each block, of each moment.": _without_scales,
            "That is one moment; Adam has two.": _one_moment,
            "The last block is not full, and has a scale too.": _whole_blocks,
        },
        describe=lambda parameters, bits, block: (
            f"{parameters:,} parameters, state of {bits} bits, blocks of {block}"
        ),
    ),
}
