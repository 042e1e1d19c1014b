"""``python -m mpbook``: ``diagnose``, ``lint``, ``doctor``, ``bench``, ``record``, and others.

``claims``, ``versions`` and ``frameworks`` are the others; ``--help`` says what each is for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mpbook import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        return _COMMANDS[chosen.command](chosen)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        print(f"mpbook: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mpbook", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    diagnose = commands.add_parser("diagnose", help="what 16 bits will do to your own model")
    diagnose.add_argument("what", metavar="MODULE:FUNCTION", help=_WHAT)
    diagnose.add_argument("--formats", nargs="+", default=["float16", "bfloat16"], metavar="FORMAT")
    diagnose.add_argument("--steps", type=int, default=3, help="to run in each format (3)")
    diagnose.add_argument("--json", action="store_true", help="print what JSON can hold")
    commands.add_parser("doctor", help="what this machine does in which precision")
    bench = commands.add_parser("bench", help="time mpbook against other libraries")
    bench.add_argument("what", choices=["formats"], help="rounding to number formats")
    bench.add_argument("--formats", nargs="+", metavar="FORMAT", help="names; five if not given")
    bench.add_argument("--elements", type=int, default=2**24, help="of the tensor (2**24)")
    bench.add_argument("--rounds", type=int, default=7, help="readings of each contender (7)")
    bench.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    bench.add_argument("--figure", type=Path, metavar="FILE", help="also draw it, as PNG or SVG")
    record = commands.add_parser("record", help="measure what has no record on this device yet")
    record.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments; all if none is given"
    )
    record.add_argument("--budget", type=_seconds, metavar="8m", help="start none that ends later")
    record.add_argument("--out", type=Path, metavar="DIR", default=Path("recorded"), help="folder")
    record.add_argument("--device", help="cuda or cpu; the best there is if not given")
    record.add_argument("--dry-run", action="store_true", help="only say what would run")
    claims = commands.add_parser("claims", help="decide what is often said, here and now")
    claims.add_argument("ids", nargs="*", metavar="ID", help="claims; all if none is given")
    versions = commands.add_parser("versions", help="what this torch does that others do not")
    versions.add_argument("--out", type=Path, metavar="DIR", help="keep it as a record there")
    frameworks = commands.add_parser("frameworks", help="what your Trainer and Lightning do")
    frameworks.add_argument("--out", type=Path, metavar="DIR", help="keep it as a record there")
    lint = commands.add_parser("lint", help="patterns in your source that the book saw fail")
    lint.add_argument("paths", nargs="*", type=Path, metavar="FILE", help=".py, .ipynb or a folder")
    lint.add_argument("--list", action="store_true", help="the rules, each with its section")
    return parser


_WHAT = (
    "a function without arguments that returns a dict of what mpbook.diagnose takes: model, "
    "batches, loss, optimizer"
)


def _seconds(text: str) -> float:
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    number = text[:-1] if unit else text
    try:
        seconds = float(number) * (unit or 1)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f'"{text}": expected a time such as 90, 90s, 8m or 1h')
    return seconds


def _diagnose(chosen: argparse.Namespace) -> int:
    from mpbook.diagnosis.command import called, diagnosed

    found = diagnosed(called(chosen.what), formats=chosen.formats, steps=chosen.steps)
    print(json.dumps(found.as_dict(), indent=1) if chosen.json else found)
    return int(any(found.survives(format) == "no" for format in found.formats))


def _doctor(chosen: argparse.Namespace) -> int:
    print(doctor.report())
    return int(bool(doctor.problems()))


def _record(chosen: argparse.Namespace) -> int:
    from mpbook.evidence import recorder

    planned = recorder.plan(chosen.names, device=chosen.device, out=chosen.out)
    if chosen.dry_run:
        print(recorder.table(planned, device=chosen.device))
        return 0
    written = recorder.record(
        chosen.names, out=chosen.out, device=chosen.device, budget_s=chosen.budget
    )
    print(f"{len(written)} records in {chosen.out}")
    return 0


def _bench(chosen: argparse.Namespace) -> int:
    from mpbook import bench, plots

    if not chosen.no_compile and doctor.cpp_compiler() is None:
        raise RuntimeError(f"no C++ compiler: {doctor.HOW_TO_COMPILE}, or give --no-compile")
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


def _claims(chosen: argparse.Namespace) -> int:
    from mpbook.evidence import claims

    print(claims.ledger(*chosen.ids))
    return 0


def _versions(chosen: argparse.Namespace) -> int:
    from mpbook.evidence import versions

    if chosen.out:
        print(versions.record_here(versions.PROBES.values(), chosen.out))
    else:
        print(versions.here())
    return 0


def _frameworks(chosen: argparse.Namespace) -> int:
    from mpbook.evidence import frameworks

    if chosen.out:
        print(frameworks.record_here(chosen.out))
        return 0
    found = frameworks.measure(frameworks.questions())
    shown = (frameworks.two_by_two, frameworks.lightning_words, frameworks.accelerate_words)
    print(*(table(found) for table in shown), sep="\n\n")
    return 0


def _lint(chosen: argparse.Namespace) -> int:
    from mpbook import lint

    if chosen.list:
        print(lint.table())
        return 0
    if not chosen.paths:
        raise ValueError("lint: no FILE given; name files or folders, or --list")
    findings = lint.lint_files(chosen.paths)
    print(*findings, sep="\n", end="\n" if findings else "")
    return int(bool(findings))


_COMMANDS = {
    "diagnose": _diagnose,
    "doctor": _doctor,
    "bench": _bench,
    "record": _record,
    "claims": _claims,
    "versions": _versions,
    "frameworks": _frameworks,
    "lint": _lint,
}


if __name__ == "__main__":
    sys.exit(main())
