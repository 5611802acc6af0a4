"""What `s3mount doctor` finds: one finding each, with what it means."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, WEAK, BAD = "good", "weak", "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `level` is GOOD, WEAK or BAD.

    `means` says what s3mount does because of it, or what to do about it.
    """

    subject: str
    level: str
    found: str
    means: str = ""
