"""Swaps whose replicas go: who stays within the variant, who moves, and who is told."""

import pytest

from swap_site import NAMES


async def test_a_failover_stays_within_the_variant(make_site):
    """A session of the new one goes on at its other replica, never at an old one."""
    site = await make_site(green=2)
    await site.swap()
    answer = await site.ask("s")
    lost = answer.headers["x-sessile-replica"]
    site.routers[0].app.pool.drain(lost)
    after = await site.ask("s")
    assert after.headers["x-sessile-variant"] == "m@green"
    assert after.headers["x-sessile-replica"] not in (lost, "blue-0")


async def test_with_no_replica_of_its_variant_left_a_session_is_told(make_site):
    """It is not mixed; new ones go to the other, and a roll back moves it."""
    site = await make_site()
    await site.swap(percent=99)
    sessions = [s for s in NAMES if (await site.of(s)) == ["m@green"]]
    pool = site.routers[0].app.pool
    pool.drain("green-0")
    assert pool.missed("m") == 0
    lost = await site.ask(sessions[0])
    assert pool.missed("m") == 1  # whoever starts replicas on demand is to know
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "no_replica")
    assert "--roll-back" in lost.json()["error"]["message"]
    assert set(await site.of(*[f"new{n}" for n in range(5)])) == {"m"}
    sides = await site.sides()
    assert (sides["m@green"]["errors"], sides["m"]["errors"]) == (1, 0)
    await site.command("/m/roll-back", {})
    assert await site.of(sessions[0]) == ["m"]


@pytest.mark.parametrize("deadline_s", [None, 60, 0])
async def test_the_old_one_stands_in_for_a_new_one_that_is_gone(make_site, deadline_s):
    """A swap of all new sessions at once, whose new replicas die: new sessions begin where the
    others run, and stay there while those do; once the swap is finished they fail."""
    site = await make_site()
    await site.swap(**({} if deadline_s is None else {"deadline_s": deadline_s}))
    assert await site.of("mine") == ["m@green"]
    pool = site.routers[0].app.pool
    pool.drain("green-0")
    assert (await site.ask("mine")).status_code == 503
    if deadline_s == 0:  # nobody may be there any more
        assert (await site.ask("new")).status_code == 503
        return
    assert await site.of("new") == ["m"]
    pool.resume("green-0")
    assert await site.of("mine", "new", "newer") == ["m@green", "m", "m@green"]
    await site.command("/m/finish", {})
    pool.drain("green-0")
    assert (await site.ask("newest")).status_code == 503


async def test_what_is_left_and_gone_keeps_nobody(make_site):
    """The old replicas may go before every session has ended: those move."""
    site = await make_site()
    await site.of("s")
    await site.swap()
    site.routers[0].app.pool.drain("blue-0")
    assert await site.of("s") == ["m@green"]
