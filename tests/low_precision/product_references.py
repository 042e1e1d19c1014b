"""What the products of a recipe must be, written again in numpy and ml_dtypes.

Nothing of `mpbook` is used: scales come from frexp and float64, elements from ml_dtypes' casts.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

E4M3, E5M2, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn
LARGEST = {E4M3: 448.0, E5M2: 57344.0, E2M1: 6.0}


def power_of_two(amax: np.ndarray, largest: float) -> np.ndarray:
    """The smallest power of two s with amax / s <= largest."""
    fraction, exponent = np.frexp(amax / largest)
    scale = np.ldexp(1.0, np.where(fraction == 0.5, exponent - 1, exponent))
    return np.where(amax == 0, 1.0, scale)


def in_tiles(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The largest magnitude of each tile, spread over it again."""
    m, k = x.shape
    amax = np.abs(x).reshape(m // rows, rows, k // columns, columns).max((1, 3))
    return np.repeat(np.repeat(amax, rows, 0), columns, 1)


def rounded(x: np.ndarray, scale: np.ndarray, element: type) -> np.ndarray:
    divisor = np.where(scale == 0, np.inf, scale).astype(np.float32)
    ratio = x.astype(np.float32) / divisor
    clipped = np.clip(ratio, -LARGEST[element], LARGEST[element])
    return clipped.astype(element).astype(np.float64) * scale


def per_tensor(x: np.ndarray, element: type = E4M3) -> np.ndarray:
    scale = np.float32(np.abs(x).max() / LARGEST[element])
    return rounded(x, np.full(x.shape, scale), element)


def in_blocks(x: np.ndarray, rows: int, columns: int, element: type = E4M3) -> np.ndarray:
    return rounded(x, power_of_two(in_tiles(x, rows, columns), LARGEST[element]), element)


def nvfp4(x: np.ndarray, rows: int = 1) -> np.ndarray:
    whole = np.float32(np.abs(x).max() / (448 * 6))
    ratio = (in_tiles(x, rows, 16) / 6).astype(np.float32) / whole
    scale = ratio.astype(E4M3).astype(np.float32) * whole
    return rounded(x, scale, E2M1)


def quantise_last(kind: str, tensor: str, x: np.ndarray) -> np.ndarray:
    """A matrix as an operand of a recipe; its rows are contracted."""
    match kind:
        case "float8_tensorwise":
            return per_tensor(x, E5M2 if tensor == "dy" else E4M3)
        case "float8_rowwise":
            return in_blocks(x, 1, x.shape[1])
        case "float8_blockwise":
            return in_blocks(x, 128 if tensor == "w" else 1, 128)
        case "mxfp8":
            return in_blocks(x, 1, 32)
        case "mxfp4":
            return in_blocks(x, 1, 32, E2M1)
        case "nvfp4":
            return nvfp4(x, rows=16 if tensor == "w" else 1)
        case "unscaled_e4m3":
            return rounded(x, np.ones(x.shape), E4M3)
    raise AssertionError(kind)


def rotate(x: np.ndarray, signs: tuple[float, ...]) -> np.ndarray:
    size, matrix = len(signs), np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    blocks = x.reshape(len(x), -1, size) * np.array(signs)
    return (blocks @ matrix / np.sqrt(size)).reshape(x.shape)


def products(kind, x, w, dy, signs=None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """y, dx and dw in float64, each with the sum of magnitudes that bounds its rounding."""
    x, w, dy = (t.double().numpy() for t in (x, w, dy))
    found = {}
    for name, (left, a), (right, b) in (
        ("y", ("x", x), ("w", w)),
        ("dx", ("dy", dy), ("w", w.T)),
        ("dw", ("dy", dy.T), ("x", x.T)),
    ):
        if name == "dw" and signs:
            a, b = rotate(a, signs).astype(np.float32), rotate(b, signs).astype(np.float32)
        a, b = quantise_last(kind, left, a), quantise_last(kind, right, b)
        found[name] = a @ b.T, np.abs(a) @ np.abs(b).T
    return found


def layer_data(
    tokens: int = 256, inputs: int = 128, outputs: int = 384, *, spread: float = 2, seed: int = 0
):
    """x, w, dy whose rows and columns differ in size, so that no axis stands for another."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, size: float) -> torch.Tensor:
        sizes = [torch.exp2(spread * torch.randn(n, generator=generator)) for n in (rows, columns)]
        normal = torch.randn(rows, columns, generator=generator)
        return normal * sizes[0][:, None] * sizes[1] * size

    return matrix(tokens, inputs, 1), matrix(outputs, inputs, 0.02), matrix(tokens, outputs, 1e-4)
