"""The tree of errors, its codes, and the table that tells them on the wire."""

import pytest

from sessile import errors
from sessile.api.wire import WIRE, engine_error, openai_error, retry_headers


def test_every_leaf_is_in_the_table_and_in_the_docstring():
    """An error that can be raised can be told, and is listed where a reader looks first."""
    for leaf in errors.leaves():
        assert leaf in WIRE, leaf
        assert leaf.__name__ in errors.__doc__


def test_codes_are_unique_and_lead_back_to_their_class():
    """What travels on the wire is raised again as the class that it was."""
    for leaf in errors.leaves():
        again = errors.from_code(leaf.code, "said", param="p", retry_after_s=1.0)
        assert type(again) is leaf
        assert (again.message, again.param, again.retry_after_s) == ("said", "p", 1.0)
    assert type(errors.from_code("of a later version", "said")) is errors.SessileError


def test_the_openai_shape_has_exactly_its_four_fields():
    """Clients read message, type, param and code."""
    told = openai_error(errors.ModelNotFound("no such model", param="model"))["error"]
    assert told == {
        "message": "no such model",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_official_sdks_do_not_retry_what_is_of_no_use():
    """They take 409 and 5xx for a reason to, unless they are told that it is none."""
    stop = [(b"x-should-retry", b"false")]
    assert retry_headers(errors.NotSupported("no grammars")) == stop
    assert retry_headers(errors.TurnCancelled("cancelled")) == stop
    assert retry_headers(errors.InvalidRequest("bad")) == []  # they do not retry a 400 anyway
    assert retry_headers(errors.ReplicaUnreachable("gone")) == []
    assert retry_headers(errors.SessionBusy("busy", retry_after_s=1.0)) == [(b"retry-after", b"1")]
    assert retry_headers(errors.SessileError("the router failed")) == []


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (400, b'{"error":{"message":"exceeds the context length"}}', errors.PromptTooLong, "exc"),
        (400, b'{"message":"bad field"}', errors.InvalidRequest, "bad field"),
        (404, b'{"detail":"no model"}', errors.ModelNotFound, "no model"),
        (429, b'{"error":"busy"}', errors.Overloaded, "busy"),
        (500, b"<html>", errors.ReplicaRefused, "500"),
        (503, b"[]", errors.ReplicaRefused, "503"),
    ],
)
def test_an_engine_s_refusal_becomes_ours_with_its_own_sentence(status, body, kind, said):
    """Whatever shape an engine says no in, its reason survives."""
    error = engine_error(status, body)
    assert type(error) is kind and said in error.message
