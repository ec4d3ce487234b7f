"""The share of the places that is kept back while refusing takes much of the time."""

from __future__ import annotations

import pytest

from bridge.effort import Effort


class Clock:
    """Stands still unless it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Refusing:
    """Refuses for so many of each ten milliseconds, and does something else or nothing besides."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.effort = Effort(self.clock)

    def go_on(self, seconds: float, *, refusing: float) -> float:
        """The share in the end."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.effort.begin()
            self.clock.now += refusing / 1000
            self.effort.end()
            self.clock.now += (10 - refusing) / 1000
        return self.effort.begin()


@pytest.fixture
def refusing() -> Refusing:
    return Refusing()


def test_all_places_are_given_away_at_first(refusing):
    assert refusing.effort.begin() == 0


def test_twice_the_share_of_the_time_is_kept_back(refusing):
    assert refusing.go_on(1, refusing=2) == pytest.approx(0.4, rel=0.05)


def test_some_places_are_always_given_away(refusing):
    assert refusing.go_on(1, refusing=10) == 0.75


def test_what_was_refused_long_ago_keeps_nothing_back(refusing):
    refusing.go_on(1, refusing=10)
    refusing.clock.now += 5
    assert refusing.effort.begin() < 0.05
    refusing.clock.now += 0.2
    assert refusing.effort.begin() == 0


def test_reading_of_one_refused_after_another_is_counted_and_other_work_is_not(refusing):
    def share(*, other_work: bool) -> float:
        refusing.clock.now += 10
        refusing.effort.begin()
        for _ in range(10_000):
            refusing.effort.begin()
            refusing.clock.now += 10e-6
            refusing.effort.end()
            if other_work:
                # A request that is let in.
                refusing.effort.begin()
            refusing.clock.now += 20e-6
        refusing.clock.now += 0.5
        return refusing.effort.begin()

    alone = share(other_work=True)
    assert share(other_work=False) == pytest.approx(3 * alone, rel=0.1)
