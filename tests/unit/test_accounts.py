"""What is made of an engine's counts."""

from sessile.accounts import found_cached
from sessile.engines.kinds import engine
from sessile.router.connection import Timeouts
from sessile.router.engine import Usage
from sessile.router.replica import Replica, ReplicaSpec
from sessile.router.upstream import Upstream


def replica():
    """One that nobody connects to."""
    url = "http://127.0.0.1:9"
    timeouts = Timeouts(connect_s=1.0, first_byte_s=1.0, idle_s=1.0)
    spec = ReplicaSpec(id="a", engine="sglang", url=url)
    return Replica(spec, engine("sglang"), Upstream(url, timeouts))


def test_no_count_is_unknown_until_the_engine_has_given_one():
    """An engine that counts leaves the count out where it is zero; one that never does is not
    taken to have found nothing."""
    one = replica()
    assert found_cached(Usage(100, 5, None), one) is None
    assert found_cached(Usage(100, 5, 64), one) == 64
    assert found_cached(Usage(100, 5, None), one) == 0
    assert found_cached(Usage(None, None, None), one) is None
