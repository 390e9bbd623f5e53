"""Several programs at once, one step at a time, in an order that a seed decides: the same in every run."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

WAIT_SECONDS_MAX = 60.0


class Turns:
    """Only one of the threads runs; at each step it may be another one's turn."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._turn = -1
        self._mine = threading.local()

    def step(self) -> None:
        """Called by a running program between two of its steps. Does nothing outside of `run`."""
        number = getattr(self._mine, "number", None)
        if number is None:
            return
        with self._changed:
            self._turn = self._chance.choice(self._waiting)
            self._changed.notify_all()
            self._wait_for(number)

    def run(self, programs: Sequence[Callable[[], object]]) -> None:
        """Run all of them to their ends. Raises what the first one that failed raised."""
        failures: list[BaseException] = []
        self._waiting = list(range(len(programs)))
        self._turn = self._chance.choice(self._waiting)
        threads = [
            threading.Thread(target=self._program, args=(number, program, failures), daemon=True)
            for number, program in enumerate(programs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS_MAX)
            assert not thread.is_alive(), "a program waits for one whose turn never comes"
        if failures:
            raise failures[0]

    def _program(
        self, number: int, program: Callable[[], object], failures: list[BaseException]
    ) -> None:
        self._mine.number = number
        with self._changed:
            self._wait_for(number)
        try:
            program()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            failures.append(error)
        with self._changed:
            self._waiting.remove(number)
            self._turn = self._chance.choice(self._waiting) if self._waiting else -1
            self._changed.notify_all()

    def _wait_for(self, number: int) -> None:
        arrived = self._changed.wait_for(lambda: self._turn == number, WAIT_SECONDS_MAX)
        assert arrived, "the turn never came"
