"""Swaps while sessions run: who goes where from their beginning to their end."""

import asyncio

import pytest

from swap_site import NAMES, RELEASES, in_force


async def test_a_pool_on_standby_serves_nobody_before_a_swap(make_site):
    """Though it serves the same model."""
    site = await make_site()
    assert set(await site.of(*NAMES[:10])) == {"m"}
    assert site.fakes["green"][0].seen == []


async def test_new_sessions_go_to_the_new_and_running_ones_stay(make_site):
    """Until they end; the receipt says the variant."""
    site = await make_site()
    await site.of("running")
    await site.swap()
    assert await site.of("running", "new", "running", "new") == ["m", "m@green"] * 2
    receipt = await site.receipt(await site.ask("new"))
    assert (receipt["model"], receipt["variant"], receipt["left"]) == ("m", "m@green", None)
    assert [seen.body["model"] for seen in site.fakes["green"][0].seen] == ["m"] * 3


async def test_a_canary_gets_its_share_and_keeps_it(make_site):
    """30 % of the new sessions, each for all its turns; at 60 % those that were in it are still."""
    site = await make_site()
    await site.swap(percent=30)
    first = await site.of(*NAMES)
    assert 4 <= first.count("m@green") <= 20
    assert await site.of(*NAMES) == first
    await site.command("/m/share", {"percent": 60})
    assert await site.of(*NAMES) == first
    later = await site.of(*[f"t{n}" for n in range(40)])
    assert 14 <= later.count("m@green") <= 34


async def test_at_the_deadline_a_session_moves_whole(make_site):
    """Its next turn goes to the new one, and says so; the turn after stays."""
    site = await make_site()
    await site.of("s")
    await site.swap(deadline_s=0)
    moved = await site.ask("s")
    assert (moved.headers["x-sessile-reason"], moved.headers["x-sessile-variant"]) == (
        "swapped", "m@green",
    )  # fmt: skip
    assert (await site.receipt(moved))["left"] == "m"
    stays = await site.ask("s")
    assert stays.headers["x-sessile-reason"] == "bound"
    assert (await site.receipt(stays))["left"] is None


async def test_finish_ends_the_swap_and_the_name_means_the_new(make_site):
    """Another swap may begin; who runs at the old one stays without a deadline."""
    site = await make_site()
    await site.of("old")
    await site.swap(percent=10)
    done = await site.command("/m/finish", {})
    assert done["state"] == "finished"
    assert set(await site.of(*NAMES)) == {"m@green"}
    assert await site.of("old") == ["m"]
    back = await site.swap(to="m")
    assert (back["source"], back["target"]) == ("m@green", "m")
    assert await site.of("newer", "old") == ["m", "m"]


@pytest.mark.parametrize(("deadline_s", "variant"), [(0, "m"), (600, "m@green")])
async def test_a_roll_back_takes_all_back_at_once_or_by_a_deadline(make_site, deadline_s, variant):
    """New sessions go to the old one in either case."""
    site = await make_site()
    await site.swap()
    assert await site.of("canary") == ["m@green"]
    await site.command("/m/roll-back", {"deadline_s": deadline_s})
    assert await site.of("new", "canary", "canary") == ["m", variant, variant]


async def test_figures_stand_side_by_side(make_site):
    """Of each variant: sessions, turns, errors, times, tokens and hits."""
    site = await make_site()
    await site.swap(percent=50)
    variants = await site.of(*NAMES[:10])
    again = await site.of(*NAMES[:10], stream=True)
    assert again == variants
    sides = await site.sides()
    for name in ("m", "m@green"):
        count = variants.count(name)
        side = sides[name]
        assert (side["sessions"], side["turns"], side["errors"]) == (count, 2 * count, 0)
        assert (side["percent"], side["ready"]) == (50, 1)
        assert side["ttft_p50_s"] <= side["ttft_p90_s"]
        assert 0 < side["hit_rate"] < 1
        assert side["completion_tokens"] > 0
    metrics = (await site.http.get("/metrics")).text
    count = float(variants.count("m@green"))
    assert f'sessile_variant_sessions_total{{model="m",variant="m@green"}} {count}' in metrics
    assert 'sessile_variant_weight{model="m",variant="m"} 50.0' in metrics
    assert 'sessile_variant_ttft_seconds_count{variant="m"}' in metrics


async def test_the_settings_may_split_a_model(make_site):
    """As an A/B test begins, say; what is commanded later holds, whatever they say."""
    split = [{"model": "m", "to": "green", "percent": 50}]
    site = await make_site(release=split)
    known = site.routers[0].app.pool.releases
    await site.routers[0].until(lambda: "m" in known)
    told = (await site.http.get(RELEASES)).json()["releases"][0]
    await site.routers[0].until(lambda: in_force(site.routers[0], told))
    first = await site.of(*NAMES)
    assert set(first) == {"m", "m@green"}
    assert await site.of(*NAMES) == first
    await site.command("/m/roll-back", {})
    await asyncio.sleep(0.6)  # the settings are looked at twice a second
    assert known.get("m").state == "rolled_back"
