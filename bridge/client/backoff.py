"""How long to wait between one try and the next."""

import random
from collections.abc import Iterator

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


def pauses() -> Iterator[float]:
    """Seconds between one try and the next; without end."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311  mere jitter
        pause = min(_LONGEST_PAUSE, pause * 2)
