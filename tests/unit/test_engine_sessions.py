"""Which ids follow an answer, and what the rounds of the benchmark amount to."""

from sessile.lab.engine_sessions import Sample, summed
from sessile.lab.engine_ways import after_answer, appended


def test_what_follows_an_answer_is_what_two_prompts_end_with() -> None:
    """However long the answers are; two prompts that share no end have nothing."""
    assert after_answer([1, 5, 6, 2, 9, 4], [1, 7, 2, 9, 4]) == [2, 9, 4]
    assert after_answer([2, 9], [1, 2, 9]) == [2, 9]
    assert after_answer([1, 2], [1, 3]) == []


def test_an_end_is_not_put_behind_an_end() -> None:
    """Only where it is the same token, and where something is held."""
    assert appended([1, 2], [2, 9]) == [9]
    assert appended([1, 3], [2, 9]) == [2, 9]
    assert appended([], [2, 9]) == [2, 9]
    assert appended([2], []) == []


def sample(how: str, number: int, turn: int, ttft_s: float | None, text: str = "a") -> Sample:
    """A turn of ten times its number of bytes."""
    return Sample(how, number, turn, 10 * turn, ttft_s, 100 * turn, 90 * turn, text)


def test_times_are_compared_turn_by_turn() -> None:
    """A turn whose neighbours were slow, too, is not slow; one without text is left out."""
    samples = [
        sample("chat", 0, 20, 1.0), sample("chat", 0, 21, 5.0), sample("chat", 0, 22, 1.0),
        sample("ids", 0, 20, 0.75), sample("ids", 0, 21, 4.5), sample("ids", 0, 22, None),
        sample("chat", 0, 3, 9.0), sample("ids", 0, 3, 0.0),
    ]  # fmt: skip
    chat, ids = summed(samples)
    assert chat.less_than_chat_s is None and chat.ttft_p50_s == 1.0
    assert ids.less_than_chat_s is not None and ids.less_than_chat_s[1] == 0.375
    assert (ids.third_bytes, ids.last_bytes, ids.prompt_tokens, ids.cached_tokens) == (
        30, 220, 2200, 1980,
    )  # fmt: skip


def test_answers_are_the_same_until_one_is_not() -> None:
    """What follows it in that round answers another prompt, even if by the same words."""
    samples = [sample("chat", n, turn, 0.1) for n in (0, 1) for turn in (1, 2, 3)]
    samples += [sample("ids", n, turn, 0.1) for n in (0, 1) for turn in (1, 2, 3)]
    samples += [sample("session", 0, turn, 0.1, "b" if turn == 2 else "a") for turn in (1, 2, 3)]
    samples += [sample("session", 1, turn, 0.1) for turn in (1, 2, 3)]
    chat, ids, session = summed(samples)
    assert (chat.as_ids, ids.as_ids, session.as_ids) == (6, 6, 4)
    assert session.turns == 6
