"""What routers tell each other of their turns, so that each knows what the replicas hold. Pure.

A turn is told when it begins and when it ends; what each router has under way is told as sums
(`Outlook.foreign_*`), which a lost message or a lost router cannot leave wrong. News that come
late or never cost a worse decision, nothing else: the binding is what routers agree on. Sessions
and blocks are keyed under their tenant, so nothing crosses from one to another.
"""

from typing import Literal

import msgspec

from sessile.router.pace import Decoded


class FirstToken(msgspec.Struct, frozen=True, array_like=True):
    """A first token of `model` came `seconds` after `amount` of work was begun: what rates are
    learned from."""

    model: str
    amount: float
    seconds: float


class News(msgspec.Struct, frozen=True, array_like=True):
    """What became of a session at a replica.

    runs     a turn begins: its blocks, and the tokens that it will need
    pauses   it has ended, `tokens` are held, `kind` is what the session waits for, `program`
             the session that began its program, if that is another; `first` teaches rates,
             `decoded` the pace where only some replicas speculate
    refused  its turn was, and has left nothing but the first `tokens` of its `blocks`, which were
             there before
    idle     nothing is held for the session any longer
    closed   it is over
    leased   its memory is to be held for so many `seconds` from now
    """

    state: Literal["runs", "pauses", "refused", "idle", "closed", "leased"]
    session: str
    replica: str = ""
    incarnation: str = ""
    tokens: int = 0
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    kind: str = ""
    seconds: float = 0.0
    program: str = ""
    first: FirstToken | None = None
    decoded: Decoded | None = None
