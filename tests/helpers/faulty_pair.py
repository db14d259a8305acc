"""Two replicas that can be made to fail, behind routers that had others."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake
from sessile.router.replica import ReplicaSpec


class FaultyPair:
    """`left` and `right`. Each of the `faults` is for one request, whichever replica gets it."""

    def __init__(self) -> None:
        self.replicas: dict[str, FakeReplica] = {}
        self.faults: deque[Fault] = deque()

    @property
    def asked(self) -> int:
        """How many requests came to either."""
        return sum(len(replica.seen) for replica in self.replicas.values())

    def loses(self, name: str, fault: Fault) -> FakeReplica:
        """That one fails whatever it is asked from now on; gives the other."""
        self.replicas[name].always = fault
        return self.replicas["right" if name == "left" else "left"]


@asynccontextmanager
async def faulty_pair(*routers: Any) -> AsyncIterator[FaultyPair]:
    """Puts two replicas that speak as SGLang behind the routers, in place of what they have."""
    async with AsyncExitStack() as stack:
        pair = FaultyPair()
        for name in ("left", "right"):
            pair.replicas[name] = await stack.enter_async_context(
                serve_fake(model="m", faults=pair.faults)
            )
        for router in routers:
            pool = router.app.pool
            for replica in list(pool):
                await pool.remove(replica.id)
            for name, fake in pair.replicas.items():
                pool.add(ReplicaSpec(id=name, engine="sglang", url=fake.url))
            await router.until(lambda pool=pool: len(pool.candidates("m")) == 2)
        yield pair
        for fake in pair.replicas.values():
            await fake.until(lambda fake: fake.running == 0)
