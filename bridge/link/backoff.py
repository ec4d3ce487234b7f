"""How long to wait between one try and the next."""

import random
from collections.abc import Iterator


def pauses(first: float, longest: float) -> Iterator[float]:
    """Seconds between one try and the next, with jitter; without end."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311  mere jitter
        pause = min(longest, pause * 2)
