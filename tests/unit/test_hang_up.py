"""What a client declares of its own hanging up."""

import pytest

from sessile.api.hang_up import on_disconnect
from sessile.errors import InvalidRequest


def test_what_becomes_of_a_turn_whose_client_goes() -> None:
    """It ends, unless it was declared otherwise, in so many words."""
    assert on_disconnect([]) == "abort"
    assert on_disconnect([(b"x-sessile-on-disconnect", b"detach")]) == "detach"
    assert on_disconnect([(b"x-sessile-on-disconnect", b"abort")]) == "abort"
    for values in ([b"keep"], [b""], [b"detach", b"abort"]):
        with pytest.raises(InvalidRequest):
            on_disconnect([(b"x-sessile-on-disconnect", value) for value in values])
