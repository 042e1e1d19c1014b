"""The command line: ``python -m mpbook doctor`` and ``python -m mpbook bench formats``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mpbook import __version__, device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        return {"doctor": _doctor, "bench": _bench}[chosen.command](chosen)
    except (ImportError, ValueError, OSError) as error:
        print(f"mpbook: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mpbook", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what this machine does in which precision")
    bench = commands.add_parser("bench", help="time mpbook against other libraries")
    bench.add_argument("what", choices=["formats"], help="rounding to number formats")
    bench.add_argument("--formats", nargs="+", metavar="FORMAT", help="names; five if not given")
    bench.add_argument("--elements", type=int, default=2**24, help="of the tensor (2**24)")
    bench.add_argument("--rounds", type=int, default=7, help="readings of each contender (7)")
    bench.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    bench.add_argument("--figure", type=Path, metavar="FILE", help="also draw it, as PNG or SVG")
    return parser


def _doctor(chosen: argparse.Namespace) -> int:
    print(f"mpbook {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(device.table())
    return 0


def _bench(chosen: argparse.Namespace) -> int:
    from mpbook import bench, plots

    results = bench.bench_formats(
        chosen.formats or bench.DEFAULT_FORMATS,
        elements=chosen.elements,
        rounds=chosen.rounds,
        compiled=not chosen.no_compile,
    )
    print(bench.table(results))
    if chosen.figure:
        kind = chosen.figure.suffix.removeprefix(".") or "png"
        drawn = plots.render(bench.figure(results), kind)
        chosen.figure.write_bytes(drawn.encode() if isinstance(drawn, str) else drawn)
        print(f"figure: {chosen.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
