"""A server: one replica, or as many as it has data-parallel ranks, which come and go together."""

from sessile.router.replica import Replica, ReplicaSpec, State


class Server:
    """What was named at one URL, and the replicas that it is. Made by the pool; `engine` is the
    adapter of the whole, which is known only once it is up where nobody has named it."""

    def __init__(self, spec: ReplicaSpec, replica: Replica) -> None:
        self.spec = spec
        self.engine = replica.engine
        self.replicas = [replica]
        self.refuses = False  # it answers the probe, and not as its engine does

    @property
    def state(self) -> State:
        """That of its replicas; draining only if all of them are."""
        states = [replica.state for replica in self.replicas]
        return next((state for state in states if state != "draining"), "draining")

    @property
    def launched(self) -> bool:
        """Whether it was started here: who started it tells of each start and each end."""
        return self.spec.incarnation is not None

    @property
    def in_flight(self) -> int:
        """Turns of this router at all of its replicas."""
        return sum(replica.in_flight for replica in self.replicas)
