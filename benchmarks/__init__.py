"""What our parts cost, each next to the bare operation it stands on, so that a figure means the same on any machine.

Each module has `NAME` and `def run(addresses) -> list[Row]`; `addresses` has `.kafka`, `.postgres` and `.redis`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One measured claim: `value` in `unit`, what the bare operation reached, and value / bare."""

    claim: str
    value: float
    unit: str
    bare: float
    ratio: float

    @classmethod
    def of(cls, claim: str, value: float, unit: str, bare: float) -> "Row":
        """Return the row, its ratio computed."""
        return cls(claim, value, unit, bare, value / bare if bare else float("inf"))
