"""How long a process that ended is left down before it is started again. Pure."""

FIRST_S = 0.5
LONGEST_S = 30.0
STEADY_S = 30.0


class BackOff:
    """The pauses of one process, in order: twice as long each time, up to `LONGEST_S`. One that was
    up for more than `STEADY_S` has earned the first again."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def pause_s(self, lived_s: float) -> float:
        """The pause after an end that came `lived_s` after the start."""
        pause_s = FIRST_S if lived_s > STEADY_S else self._next_s
        self._next_s = min(pause_s * 2, LONGEST_S)
        return pause_s
