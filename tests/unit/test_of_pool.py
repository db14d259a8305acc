"""Replicas that are found belong to the pool of the settings that finds them."""

from sessile.app import create_app
from sessile.settings import Settings


async def test_what_a_pool_discovers_is_of_that_pool(tmp_path):
    """By its name, and on standby if it is."""
    path = tmp_path / "replicas.toml"
    path.write_text('[[replica]]\nurl = "http://h:1"\n')
    pool = {"name": "green", "standby": True, "discover": f"file://{path}", "model": "m"}
    app = create_app(Settings(pool=[pool]))
    (followed,) = app.discovery.followed
    assert followed.name == pool["discover"]
    lists = followed._source.lists()
    (listed,) = await anext(lists)
    await lists.aclose()
    assert (listed.spec.pool, listed.spec.standby, listed.spec.model) == ("green", True, "m")
