"""What is kept of an accepted response."""

from sessile.api.responses_body import read_request
from sessile.api.responses_record import Accepted, read_accepted, write_accepted
from sessile.sessions.store import OnceKey

BODY = {"model": "m", "input": [{"role": "user", "content": "é"}], "temperature": 0.5, "x": [1]}


def test_it_comes_back_without_who_asked() -> None:
    """All that decides how it is run, and no key of the caller's."""
    accepted = Accepted(
        turn="resp_1",
        created_at=5,
        asked=read_request(BODY),
        body=BODY,
        headers=[(b"authorization", b"Bearer secret"), (b"x-session-id", b"s"), (b"cookie", b"c"),
                 (b"x-priority", b"0")],
        once=OnceKey("k", "d"),
        stream_id="lane",
    )  # fmt: skip
    data = write_accepted(accepted)
    assert b"secret" not in data
    again = read_accepted(data)
    assert again.headers == [(b"x-session-id", b"s"), (b"x-priority", b"0")]
    assert (again.turn, again.created_at, again.once, again.stream_id) == (
        "resp_1",
        5,
        OnceKey("k", "d"),
        "lane",
    )
    assert again.body == BODY and again.asked == accepted.asked
    assert again.skeleton("m")["id"] == "resp_1"


def test_it_comes_back_without_the_keys_of_mcp_servers() -> None:
    """What lets one in there is of use to nobody else; the server is still named."""
    server = {"type": "mcp", "server_label": "s", "server_url": "https://example.com/mcp",
              "authorization": "secret", "headers": {"x": "secret"}}  # fmt: skip
    body = {**BODY, "tools": [server]}
    accepted = Accepted(
        turn="r", created_at=5, asked=read_request(body), body=body, headers=[], forks=True
    )
    data = write_accepted(accepted)
    assert b"secret" not in data
    again = read_accepted(data)
    assert again.forks and again.asked.toolset.servers[0]["server_label"] == "s"
    assert body["tools"][0]["authorization"] == "secret"
