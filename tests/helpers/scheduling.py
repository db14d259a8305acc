"""A scheduler, its replicas and its turns, as the tests of it make them."""

from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.record import Binding

BLOCK = 256


def replica(id="a", capacity=None, slots=None):
    """A replica with so much KV memory."""
    outlook = Outlook(id, "1")
    outlook.resize(capacity)
    outlook.slots = slots
    return outlook


def ask(session="s", tokens=1000, at=None, **fields):
    """A turn of that session; `at` names the replica that it is bound to."""
    if at is not None:
        fields["bound"] = Binding(at, "1", 1)
    fields = {"turn": f"turn of {session}", "output_tokens": 100, **fields}
    return Ask(session=session, model="m", prompt_tokens=tokens, block_tokens=BLOCK, **fields)


def scheduler(**limits):
    """A fresh one."""
    return Scheduler(Limits(**limits))


def end(brain, session, now, tokens=1000, pause=None):
    """The session's turn ends well."""
    brain.end(f"turn of {session}", now, prompt_tokens=tokens, cached_tokens=0,
              output_tokens=100, pause=pause)  # fmt: skip


def full(capacity=100_000, tokens=60_000, **limits):
    """A replica whose memory one running session needs most of."""
    brain, a = scheduler(**limits), replica("a", capacity)
    assert brain.submit(ask("first", tokens), [a], 0.0)
    return brain, a


def admitted(brain, a, now):
    """Sessions that come out of the queue."""
    return [out.ask.session for out in brain.admit(lambda model: [a], now)]
