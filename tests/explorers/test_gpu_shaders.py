"""The GPU explorer's own WGSL on a GPU made of software, against numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from software_gpu import UNIFORM, Kernels, buffer, evaluated, mapped, software_device

from mpbook.explorers.gpu_explorer import lettered_digits
from mpbook.explorers.sum_explorer import random_numbers

Array = np.ndarray[Any, Any]
HALVES = np.arange(65536, dtype=np.uint16)


@pytest.fixture(scope="module")
def device() -> Iterator[Any]:
    return software_device()


@pytest.fixture(scope="module")
def shaders() -> dict[str, str]:
    found: dict[str, str] = evaluated("gpu_bits", "m.SHADERS")
    return found


def edges() -> Array:
    """Floats around every rounding boundary of float16, as numpy finds them."""
    halves = HALVES[:0x7C00].view(np.float16).astype(np.float64)
    middles = (halves + np.append(halves[1:], 65536.0)) / 2
    at = middles.astype(np.float32)
    beside = [np.nextafter(at, np.float32(side)) for side in (0, np.inf)]
    points = np.concatenate([halves.astype(np.float32), at, *beside]).astype(np.float32)
    return np.concatenate([points, -points])


def same(codes: Array, wanted: Array) -> Array:
    """Where codes are those of the wanted halves, any NaN for a NaN."""
    nan = np.isnan(wanted) & ((codes & 0x7FFF) > 0x7C00)
    return (codes == wanted.view(np.uint16)) | nan


def test_the_cast_and_the_packing_round_as_numpy_does(device: Any, shaders: Any) -> None:
    points = edges()
    with np.errstate(over="ignore"):
        wanted = points.astype(np.float16)
    for name, dtype in (("cast", np.uint16), ("pack", np.uint32)):
        got = mapped(device, shaders[name], points, dtype, points.size) & 0xFFFF
        assert same(got.astype(np.uint16), wanted).all(), name


def test_every_half_is_widened_to_its_value(device: Any, shaders: Any) -> None:
    wanted = HALVES.view(np.float16).astype(np.float32)
    for name, dtype in (("widen", np.uint16), ("unpack", np.uint32)):
        got = mapped(device, shaders[name], HALVES.astype(dtype), np.float32, 65536)
        assert np.array_equal(got, wanted, equal_nan=True), name


def test_arithmetic_is_numpys(device: Any, shaders: Any) -> None:
    random = np.random.default_rng(0)
    a, b, c = (random.choice(HALVES[(HALVES & 0x7C00) != 0x7C00], 20_000) for _ in range(3))
    x, y, z = (codes.view(np.float16) for codes in (a, b, c))
    with np.errstate(all="ignore"):
        wanted = {"add": x + y, "mul": x * y}
        for name, halves in wanted.items():
            pairs = np.stack([a, b], 1)
            got = mapped(device, shaders[name], pairs, np.uint16, a.size)
            assert same(got, halves).all(), name
        product = x.astype(np.float64) * y.astype(np.float64)  # exact, and the sum nearly so
        once, twice = (product + z.astype(np.float64)).astype(np.float16), x * y + z
    for name in ("fma", "madd"):
        got = mapped(device, shaders[name], np.stack([a, b, c, c], 1), np.uint16, a.size)
        assert max(same(got, once).mean(), same(got, twice).mean()) > 0.999, name


def test_ones_stall_at_2048_unless_the_sum_is_wide(device: Any, shaders: Any) -> None:
    ones = np.ones(4096, np.float32)
    assert mapped(device, shaders["sum16"], ones.astype(np.float16), np.float16, 2)[0] == 2048
    assert mapped(device, shaders["sum_packed"], ones, np.float32, 1)[0] == 2048
    assert mapped(device, shaders["sum32"], ones, np.float32, 1)[0] == 4096


# --- Speed: what is timed is right ----------------------------------------------------------------


def numbers(seed: int, count: int) -> Array:
    mixed = (np.arange(count, dtype=np.uint64) * 2654435761 + seed) % 2**32
    return (((mixed ^ (mixed >> 15)) & 1023).astype(np.float64) - 512) / 512


@pytest.mark.parametrize(("kept", "summed"), [("f32", "f32"), ("f16", "f16"), ("f16", "f32")])
def test_the_product_is_numpys(device: Any, kept: str, summed: str) -> None:
    n, dtype = 128, np.float16 if kept == "f16" else np.float32
    product = evaluated("gpu_speed", f"m.product('{kept}', '{summed}', {n})")
    fills = evaluated("gpu_speed", f"[1, 2].map((seed) => m.fill('{kept}', seed))")
    made = [buffer(device, n * n * np.dtype(dtype).itemsize) for _ in range(3)]
    for target, code in zip(made, fills, strict=False):
        Kernels(device, [target], ["storage"]).add(code, (n * n // 64,)).run()
    types = ["read-only-storage", "read-only-storage", "storage"]
    Kernels(device, made, types).add(product, (n // 64, n // 64)).run()
    a, b, c = (np.frombuffer(device.queue.read_buffer(m), dtype).reshape(n, n) for m in made)
    assert np.array_equal(a, numbers(1, n * n).reshape(n, n))
    assert np.array_equal(b, numbers(2, n * n).reshape(n, n))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    off = np.abs(c - exact).max() / np.sqrt(np.mean(exact**2))
    assert off < {"f32f32": 1e-6, "f16f16": 0.05, "f16f32": 3e-3}[kept + summed]
    assert (off > 1e-4) == (kept == "f16")


def test_the_streams_add_half_of_y(device: Any) -> None:
    count = 4096
    x, y = numbers(1, count), numbers(2, count)
    for made in evaluated("gpu_speed", "m.STREAMS"):
        dtype = np.float16 if made["bytes"] == 2 else np.float32
        held = [buffer(device, v.astype(dtype)) for v in (x, y)]
        grid = (count // made["each"] // 256,)
        Kernels(device, held, ["read-only-storage", "storage"]).add(made["code"], grid).run()
        got = np.frombuffer(device.queue.read_buffer(held[1]), dtype)
        assert np.array_equal(got, (x + y / 2).astype(dtype)), made["name"]


# --- The training ---------------------------------------------------------------------------------

STEPS, BATCH, HIDDEN = 60, 64, 64
RATE, PARAMETERS = 0.03, 64 * HIDDEN + HIDDEN + 10 * HIDDEN + 10


def beginning() -> tuple[Array, Array, Array, Array]:
    """Pixels, labels, which examples each step takes, and weights: as the page draws them."""
    held = lettered_digits()
    pixels = np.frombuffer(held["pixels"].encode(), np.uint8).reshape(-1, 64) - ord("a")
    labels = np.array([int(digit) for digit in held["labels"]])
    drawn = np.array(random_numbers(STEPS * BATCH + PARAMETERS))
    order = (drawn[: STEPS * BATCH] * len(labels)).astype(np.uint32).reshape(STEPS, BATCH)
    return pixels, labels, order, ((2 * drawn[STEPS * BATCH :] - 1) / 8).astype(np.float32)


def numpy_training(
    half: bool, master: bool, scale: float, rate: float = RATE
) -> tuple[Array, Array, Array]:
    """Losses, weights, and of each step the updates, the lost ones and the gradients of zero."""
    pixels, labels, order, kept = beginning()
    f32 = np.float32

    def rounded(x: Any) -> Array:
        x = np.asarray(x, f32)
        return x.astype(np.float16).astype(f32) if half else x

    w, losses, counts = rounded(kept), [], []
    for chosen in order:
        w1, b1 = w[:4096].reshape(64, 64), w[4096:4160]
        w2, b2 = w[4160:4800].reshape(64, 10), w[4800:]
        x, y = rounded(pixels[chosen] / 16), labels[chosen]
        h = rounded(np.maximum(x @ w1 + b1, 0))
        z = rounded(h @ w2 + b2)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        losses.append(-np.log(p[range(BATCH), y]).mean())
        p[range(BATCH), y] -= 1
        d = rounded(p * f32(scale) / BATCH)
        e = rounded(np.where(h > 0, d @ w2.T, 0))
        g = rounded(np.concatenate([(x.T @ e).ravel(), e.sum(0), (h.T @ d).ravel(), d.sum(0)]))
        before = kept if master else w
        after = before - f32(rate) * g / f32(scale)
        stays = (after == before) if master else (rounded(after) == w)
        counts.append([(g != 0).sum(), (stays & (g != 0)).sum(), (g == 0).sum()])
        kept, w = after, rounded(after)
    return np.array(losses), w, np.array(counts)


def gpu_training(device: Any, storage: str, master: bool, scale: float) -> tuple[Array, ...]:
    """The same from the module's shaders."""
    codes = evaluated("gpu_training", f"m.shaders('{storage}')")
    pixels, labels, order, weights = beginning()
    words = np.concatenate([labels[:, None].astype("<u4"), pixels.copy().view("<u4")], axis=1)
    half = weights.astype(np.float16)
    w = {"float32": weights, "float16": half, "packed": half.view(np.uint16).astype(np.uint32)}
    settings = np.zeros(1, [("rate", "<f4"), ("scale", "<f4"), ("master", "<u4"), ("none", "<u4")])
    settings[["rate", "scale", "master"]] = (RATE, scale, int(master))
    row = 64 + 2 * HIDDEN + 10
    held: list[Any] = [words, order, w[storage], weights, 4 * (BATCH * row + PARAMETERS)]
    held += [4 * STEPS * BATCH, 4 * (1 + 3 * STEPS)]
    made = [*(buffer(device, data) for data in held), buffer(device, settings, UNIFORM)]
    types = ["read-only-storage"] * 2 + ["storage"] * 5 + ["uniform"]
    kernels = Kernels(device, made, types)
    threads = -(-PARAMETERS // 64)
    for code, grid in zip(codes, (BATCH, threads, threads, 1), strict=True):
        kernels.add(code, (grid,))
    kernels.run(STEPS)
    losses, counts, end = (
        np.frombuffer(device.queue.read_buffer(made[i]), dtype)
        for i, dtype in ((5, np.float32), (6, np.uint32), (2, w[storage].dtype))
    )
    if storage == "packed":
        end = end.astype(np.uint16).view(np.float16)
    return losses.reshape(STEPS, BATCH).mean(1), end, counts[1:].reshape(STEPS, 3)


TRAININGS = [
    ("float32", False, 1.0),
    ("float16", False, 1024.0),
    ("float16", True, 1024.0),
    ("packed", False, 1024.0),
    ("packed", True, 2.0**-14),
]


@pytest.mark.parametrize(("storage", "master", "scale"), TRAININGS)
def test_the_training_is_numpys(device: Any, storage: str, master: bool, scale: float) -> None:
    losses, w, counts = numpy_training(storage != "float32", master, scale)
    got_losses, got_w, got_counts = gpu_training(device, storage, master, scale)
    assert np.abs(got_losses - losses).max() < 2e-3
    assert np.abs(got_w[:PARAMETERS] - w).max() < 2e-3
    shares, got_shares = (c[-20:].sum(0) / (20 * PARAMETERS) for c in (counts, got_counts))
    assert np.abs(shares - got_shares).max() < 0.02
    if storage != "float32" and not master:
        assert got_shares[1] > 0.1  # updates are lost


def test_too_large_a_scale_ends_in_nan(device: Any) -> None:
    _, end, _ = gpu_training(device, "float16", True, 2.0**24)
    assert not np.isfinite(end[:PARAMETERS].astype(np.float64)).all()


# What the page "Your GPU" tells a reader to try, with no GPU at all.


def test_a_smaller_rate_loses_more_updates() -> None:
    found = [numpy_training(True, False, 1024.0, rate)[2].sum(0) for rate in (0.03, 0.003)]
    shares = [lost / updates for updates, lost, _ in found]
    assert 0.1 < shares[0] < shares[1] - 0.1


def test_scales_in_the_window_train_alike_and_beside_it_do_not() -> None:
    with np.errstate(all="ignore"):
        small, *within, large = (numpy_training(True, True, 2.0**n) for n in (-24, 0, 10, 16, 24))
    wide = numpy_training(False, False, 1.0)
    for losses, _, _ in within:
        assert np.abs(losses - wide[0]).max() < 5e-3
    assert (
        small[2][-10:, 2].sum() > 0.95 * 10 * PARAMETERS
    )  # gradients of zero, with master weights
    assert small[0][-10:].mean() > wide[0][-10:].mean() + 0.1
    assert np.isnan(large[0][-1])
    assert 0 < wide[2][:, 2].mean() < PARAMETERS / 2  # in float32 too, for pixels that are blank
