"""How much longer a decoding step is for each token of context, learned. Pure.

A draft is verified, and a draft model runs, over all that stands before it: with SGLang's
STANDALONE a step over 1,000 tokens took twice what one over none would, and one without speculation
a fifth more. A turn is compared with what is usual with as many running, so that what a batch or a
device costs is left out.
"""

_MEMORY = 0.99  # what a turn that ran alone still weighs when the next one has told
_FEW = 600.0
"""What was seen counts half when its contexts were so many tokens apart, in the root of the sum of
their squares: a few turns of about one length tell nothing but noise."""
_WILD = 0.5  # what is by more than so much off was late for another reason


class Contexts:
    """Of one kind of replica. `longer` is by how much a step is longer for each token, in parts of
    what it would be with none."""

    def __init__(self) -> None:
        self.longer = 0.0
        self._xx = 0.0
        self._xy = 0.0

    def times(self, context: float) -> float:
        """A step over so many tokens takes so many times what one over none would."""
        return 1.0 + self.longer * context

    def add(self, context: float, usual: float, times: float, running: float) -> None:
        """A turn's steps took so many times what is usual over a `usual` context. Of those that run
        at once each tells the same, so all of them count as one."""
        apart = (context - usual) / self.times(usual)
        memory = _MEMORY ** (1.0 / running)
        self._xx = memory * self._xx + apart * apart / running
        self._xy = memory * self._xy + apart * min(max(times - 1.0, -_WILD), _WILD) / running
        self.longer = max(0.0, self._xy / (self._xx + _FEW * _FEW))
