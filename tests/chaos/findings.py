"""What a run has found: figures for people, and the promises that were broken."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_SHOWN = 5


@dataclass
class Findings:
    """The outcome of one run; nothing in ``broken`` means that every promise held."""

    figures: dict[str, object] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        """Note a broken promise unless it holds."""
        if not holds:
            self.broken.append(what)

    def expect_none(self, found: Collection[object], what: str) -> None:
        """Note a broken promise, with the first few, if there is any."""
        self.figures[what] = len(found)
        if found:
            shown = ", ".join(str(one) for one in list(found)[:_SHOWN])
            self.broken.append(f"{what}: {len(found)}, such as {shown}")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies; not a number when there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def in_ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
