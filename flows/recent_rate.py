"""How fast rows were finished of late, and since when none was."""

import threading
from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
"""The rate is that of the last minute: one since the start would hide that a run is slower now."""

WINDOW_ROWS = 10
"""Where fewer rows take longer than that, the window is longer: a rate of two rows is a guess."""

SETTLING_SECONDS = 10.0
"""No rate from fewer than `WINDOW_ROWS` rows before this: that of the first few means nothing."""

IDLE_SECONDS = 15.0
"""A pause that is longer is told, and makes any guess of the time left a bad one."""

_SAMPLE_SECONDS = 1.0
"""Shortest time between two samples, so that a window has few of them, and shortest window."""

_STALL_FACTOR = 10
"""A pause this many times as long as the usual one was a stall."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run is now.

    Attributes:
        rows_per_second: the recent rate; 0 if it is not known yet.
        idle: seconds since the last row, if more than `IDLE_SECONDS`; otherwise 0.
    """

    rows_per_second: float = 0.0
    idle: float = 0.0


class RecentRate:
    """Measures the pace from counts that are reported now and then, by any thread."""

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._samples = deque([(now, 0)])
        self._rows, self._changed = 0, now

    def update(self, now: float, rows: int) -> Pace:
        """The pace, given that so many rows are finished at this time."""
        with self._lock:
            pause = now - self._changed
            if rows <= self._rows:
                return Pace(self._rate(), pause if pause > IDLE_SECONDS else 0.0)
            if self._was_stalled(pause):
                self._samples.clear()  # what was before says nothing about what follows
            if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
                self._samples.append((now, rows))
            self._rows, self._changed = rows, now
            self._forget()
            return Pace(self._rate())

    def _was_stalled(self, pause: float) -> bool:
        start, before = self._samples[0]
        finished = self._rows - before
        usual = (self._changed - start) / finished if finished else pause
        return pause > IDLE_SECONDS and pause > _STALL_FACTOR * usual

    def _forget(self) -> None:
        """Drop the oldest samples as long as the next one still gives a whole window."""
        while len(self._samples) > 1:
            then, rows = self._samples[1]
            if self._changed - then < WINDOW_SECONDS or self._rows - rows < WINDOW_ROWS:
                break
            self._samples.popleft()

    def _rate(self) -> float:
        # Up to the last row: during a pause, the rate of the rows before is the better guess.
        start, before = self._samples[0]
        rows, seconds = self._rows - before, self._changed - start
        if seconds < _SAMPLE_SECONDS or (rows < WINDOW_ROWS and seconds < SETTLING_SECONDS):
            return 0.0
        return rows / seconds
