"""`mpbook.peers`: what other libraries do with the same input, each told apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpbook import peers
from mpbook.formats import FORMATS, FloatFormat, round_to
from mpbook.peers import Behaviour, Peer, behaviour, describe, installed

FLOAT16, E4M3, E2M1 = (FORMATS[n] for n in ("float16", "float8_e4m3fn", "float4_e2m1fn"))


def peer(name: str) -> Peer:
    return next(p for p in installed() if p.name == name)


def ours(format: FloatFormat, **options: str) -> Behaviour:
    return describe("mpbook", lambda x: round_to(x, format, **options), format)  # type: ignore[arg-type]


def test_the_libraries_of_this_machine_are_listed_with_their_versions() -> None:
    found = {p.name: p.version for p in installed()}
    assert list(found)[:3] == ["torch", "ml_dtypes", "gfloat"]
    assert found["torch"] == torch.__version__


def test_a_library_that_does_not_load_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no such shared object")

    monkeypatch.setattr(peers, "_gfloat", broken)
    assert "gfloat" not in {p.name for p in installed()}


@pytest.mark.parametrize("name", ["torch", "ml_dtypes", "gfloat"])
@pytest.mark.parametrize("format", [FLOAT16, FORMATS["bfloat16"], E4M3, FORMATS["float8_e5m2"]])
def test_the_oracles_round_in_range_as_we_do(name: str, format: FloatFormat) -> None:
    rounder = peer(name).prepare(format)
    assert rounder is not None
    x = torch.linspace(-1, 1, 1001) * format.max
    assert torch.equal(rounder(x), round_to(x, format, overflow="saturate"))


def test_a_format_that_a_library_lacks_gives_nothing() -> None:
    assert peer("torch").prepare(FORMATS["tfloat32"]) is None
    assert peer("torch").prepare(E2M1) is None
    assert behaviour(peer("ml_dtypes"), "tfloat32") is None


@pytest.mark.parametrize("name", ["float8_e4m3fnuz", "float6_e2m3fn", "float6_e3m2fn"])
def test_ml_dtypes_is_an_oracle_of_the_newer_formats_too(name: str) -> None:
    rounder = peer("ml_dtypes").prepare(FORMATS[name])
    assert rounder is not None
    x = torch.linspace(-1, 1, 1001) * FORMATS[name].max
    assert torch.equal(rounder(x), round_to(x, name, overflow="saturate"))


def test_our_own_behaviour_is_what_the_keywords_say() -> None:
    inf = ours(FLOAT16, overflow="inf")
    assert (inf.ties, inf.infinity, inf.nan) == ("to even", "infinity", "NaN")
    assert inf.overflow == "65504, infinity"
    assert inf.smallest == "5.96046e-08, 5.96046e-08, 0"
    assert ours(FLOAT16, overflow="saturate").infinity == "65504"
    assert ours(E4M3, overflow="nan").overflow == "448, NaN"
    assert ours(FLOAT16, overflow="inf", rounding="up").ties == "away from zero"
    assert ours(FLOAT16, overflow="inf", rounding="toward-zero").ties == "toward zero"


def test_ties_without_a_rule_are_shown_as_they_fall() -> None:
    def shifted(x: Tensor) -> Tensor:
        return torch.floor(x * 1024) / 1024 - 1

    assert describe("x", shifted, FLOAT16).ties == "0, 0.000976562"


def test_what_a_library_refuses_is_named() -> None:
    def refuses(x: Tensor) -> Tensor:
        if x.isnan().any():
            raise OverflowError("no code")
        return x

    assert describe("x", refuses, FLOAT16).nan == "OverflowError"


def test_ml_dtypes_overflows_e4m3_to_nan_and_e2m1_saturates() -> None:
    found = behaviour(peer("ml_dtypes"), E4M3)
    assert found is not None
    assert found.overflow == "448, NaN" and found.infinity == "NaN"
    assert found.library.startswith("ml_dtypes ")
    small = behaviour(peer("ml_dtypes"), "float4_e2m1fn")
    assert small is not None and small.infinity == "6"


def test_the_ties_of_powers_of_two_are_the_numbers_halfway_between_them() -> None:
    """1.5 and 3. The even code is that of 2: without mantissa bits it alternates from 1 on."""
    e8m0 = FORMATS["float8_e8m0fnu"]
    tried: list[float] = []

    def up(x: Tensor) -> Tensor:
        tried.append(x[0].item())
        return torch.exp2(x.log2().ceil())

    assert describe("x", up, e8m0).ties == "away from zero"
    assert tried[:2] == [1.5, 3.0]
    to_two = describe("x", lambda x: torch.full_like(x, 2.0), e8m0)
    assert to_two.ties == "to even"


def test_e8m0_in_three_libraries() -> None:
    found = {n: behaviour(peer(n), "float8_e8m0fnu") for n in ("torch", "ml_dtypes", "gfloat")}
    assert {n: b and b.ties for n, b in found.items()} == {
        "torch": "away from zero",
        "ml_dtypes": "away from zero",
        "gfloat": "to even",
    }
    assert found["gfloat"] and found["gfloat"].smallest.endswith(", NaN")  # 0 has no code


def test_what_a_library_rounds_without_codes_is_shown_as_it_is_stored() -> None:
    small = behaviour(peer("gfloat"), E2M1)
    assert small and small.nan == "ValueError"  # no code, though gfloat rounds NaN to NaN


def test_a_library_that_is_told_bits_alone_says_so() -> None:
    peer_of_bits = Peer("bits", "1.0", lambda format: torch.clone, told_bits_only=True)
    found = behaviour(peer_of_bits, E4M3)
    assert found and found.library == "bits 1.0, told 4 + 3 bits"


def test_looking_at_the_peers_changes_no_global_state() -> None:
    import logging

    before = logging.root.manager.disable
    installed()
    assert logging.root.manager.disable == before
