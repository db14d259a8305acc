"""Routers before the two sides of a swap, as the tests of it make them."""

import time

CHAT = "/v1/chat/completions"
RELEASES = "/sessile/v1/releases"
USER = {"role": "user", "content": "hi"}


class Site:
    """Routers before the pools `blue`, in service, and `green`, on standby; `http` is a client of
    the first."""

    def __init__(self, routers, fakes, clients):
        self.routers, self.fakes, self.clients = routers, fakes, clients
        self.http = clients[0]

    async def swap(self, to="green", model="m", **fields):
        """Begin a swap, and wait until it is in force."""
        return await self.command("", {"model": model, "to": to, **fields})

    async def command(self, what, body, http=None):
        """One change, in force at all routers."""
        http = http or self.http
        answer = await http.post(RELEASES + what, json=body)
        assert answer.status_code < 300, answer.text
        for client, router in zip(self.clients, self.routers, strict=True):
            await router.until(lambda r=router: in_force(r, answer.json()))
            (shown,) = (await client.get(RELEASES)).json()["releases"]
            assert shown["state"] == answer.json()["state"]
        return answer.json()

    async def ask(self, session=None, model="m", http=None, headers=(), **fields):
        """One turn."""
        body = {"model": model, "messages": [USER], **fields}
        named = {"x-session-id": session} if session is not None else {}
        return await (http or self.http).post(CHAT, json=body, headers={**named, **dict(headers)})

    async def of(self, *sessions, **fields):
        """The variant that each session's next turn is served by; every turn succeeds."""
        found = []
        for session in sessions:
            answer = await self.ask(session, **fields)
            assert answer.status_code == 200, answer.text
            found.append(answer.headers.get("x-sessile-variant", "m"))
            pool = "green" if found[-1] == "m@green" else "blue"
            assert answer.headers["x-sessile-replica"].startswith(pool)
        return found

    async def sides(self):
        """The figures of the release, by variant."""
        for router in self.routers:
            await router.app.releases.once()
        (release,) = (await self.http.get(RELEASES)).json()["releases"]
        return {side["variant"]: side for side in release["variants"]}

    async def receipt(self, answer):
        """The turn's."""
        turn = answer.headers["x-sessile-turn"]
        return (await self.http.get(f"/sessile/v1/turns/{turn}/receipt")).json()


def in_force(router, told):
    """Whether the router has heard, and its time has come."""
    release = router.app.pool.releases.get(told["model"])
    if release is None or release.state != told["state"]:
        return False
    return [v["percent"] for v in told["variants"]] == [v.weight for v in release.variants] and (
        release.at(time.time()) is release.variants
    )


NAMES = [f"s{n}" for n in range(40)]
