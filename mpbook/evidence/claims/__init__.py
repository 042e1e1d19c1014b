"""Claims on trial: a sentence that people repeat, and the computation that decides it.

Much of what is said about mixed precision was true of one GPU, one model or one version of a
library.  Each such sentence stands here as a `Claim`, with the page that says it, and with a
predicate.  The predicate runs something on the device at hand, or reads a record of a GPU, and
returns a `Verdict` with the numbers that it rests on.  No verdict is written down anywhere, so none
can be out of date; where the evidence is missing, the verdict says so.

The book's page "Claims on trial" is `ledger` over all of them, and a test compares with it whatever
the chapters say of a claim.
"""

from __future__ import annotations

from mpbook.evidence.claims import low_precision, many_gpus, numbers, pytorch, recorded, training
from mpbook.evidence.claims.base import NOT_RECORDED, Claim, Evidence, Kind, Ledger, Verdict

__all__ = ["CLAIMS", "NOT_RECORDED", "Claim", "Evidence", "Kind", "Ledger", "Verdict", "ledger"]

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for group in (numbers, pytorch, training, many_gpus, recorded, low_precision)
    for claim in group.CLAIMS
}
"""By id, those decided by arithmetic first, those that need a GPU's record after them, those about
8 and 4 bits last."""


def ledger(*ids: str, evidence: Evidence | None = None) -> Ledger:
    """Decide claims, all of them if none is named.

    Args:
        *ids: which, in this order.
        evidence: the device and the records to decide by; by default the device at hand and the
            records that come with the package.

    Raises:
        ValueError: an unknown id.
    """
    if unknown := [name for name in ids if name not in CLAIMS]:
        raise ValueError(f'"{unknown[0]}": expected one of {", ".join(CLAIMS)}')
    evidence = evidence or Evidence()
    chosen = [CLAIMS[name] for name in ids or CLAIMS]
    return Ledger(tuple((claim, claim.decide(evidence)) for claim in chosen))
