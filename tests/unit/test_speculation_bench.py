"""The figures of the speculation benchmark, and its texts."""

import json
import math
from random import Random

import pytest
from rich.console import Console

from sessile.errors import SettingsError
from sessile.lab.speculation_load import Pass, Turn, stepped, summed
from sessile.lab.speculation_rows import better, break_even, rows, table, verdict
from sessile.lab.speculation_texts import KINDS, conversation


def turn(tokens: int = 101, decode_s: float = 2.0, accepted: int | None = None) -> Turn:
    """An answer whose first token took a second."""
    return Turn(text="x", replica="one", ttft_s=1.0, decode_s=decode_s, tokens=tokens,
                accepted_tokens=accepted)  # fmt: skip


def made(side: str, tok_s: float, number: int = 0, **more: object) -> Pass:
    """A pass of edits at batch 1."""
    figures = {"kind": "edits", "batch": 1, "acceptance": None, "turns_at": {},
               "turn_tok_s": []} | more  # fmt: skip
    return Pass(side=side, round=number, decode_tok_s=tok_s, whole_tok_s=tok_s / 2,
                tpot_p50_s=1 / tok_s, ttft_p50_s=1.0, **figures)  # type: ignore[arg-type] # fmt: skip


def test_a_pass_is_as_fast_as_its_streams_together() -> None:
    """The first token of each is its prompt's, and the time until it is in the whole speed only."""
    held = [[turn(), turn()], [turn(decode_s=4.0), turn()]]
    found = summed(held, "off", "edits", 2, 0, 10.0, None)
    assert found.batch == 2
    assert found.decode_tok_s == pytest.approx(2 * 400 / 10)
    assert found.whole_tok_s == pytest.approx(40.4)
    assert found.tpot_p50_s == pytest.approx(0.02)
    assert (found.ttft_p50_s, found.turns_at) == (1.0, {"one": 4})
    assert found.turn_tok_s == pytest.approx([2 * 200 / 6, 100.0])


def test_an_answer_in_one_piece_has_no_speed() -> None:
    """It is left out, and where there is no other, nothing can be said."""
    at_once = turn(tokens=50, decode_s=0.0)
    found = summed([[at_once, turn()]], "off", "edits", 1, 0, 1.0, None)
    assert (found.decode_tok_s, found.turn_tok_s) == (50.0, [0.0, 50.0])
    with pytest.raises(SettingsError, match="--off: every answer came in one piece"):
        summed([[at_once]], "off", "edits", 1, 0, 1.0, None)


def test_tokens_a_step_as_each_engine_tells_them() -> None:
    """SGLang counts steps, from nothing on; vLLM and llama.cpp count what was accepted beside
    them; one that tells nothing has none."""
    sglang, vllm = "sglang:spec_verify_calls_total", "vllm:spec_decode_num_accepted_tokens_total"
    turns = [turn(), turn()]
    assert stepped(turns, {}, {sglang: 80.0}) == pytest.approx(2.5)
    assert stepped(turns, {sglang: 40.0}, {sglang: 80.0}) == pytest.approx(5.0)
    assert stepped(turns, {vllm: 7.0}, {vllm: 107.0}) == pytest.approx(2.0)
    assert stepped([turn(accepted=50), turn(accepted=0)], {}, {}) == pytest.approx(200 / 150)
    assert stepped(turns, {}, {}) is None
    assert stepped(turns, {sglang: 40.0}, {sglang: 40.0}) is None


def test_break_even_is_where_on_is_as_fast_as_off() -> None:
    """An engine that is twice as fast by four tokens a step has steps twice as dear."""
    assert break_even(4.0, 2.0) == 2.0
    assert break_even(3.0, 1.0) == 3.0
    assert break_even(None, 2.0) is None


def test_rows_are_of_all_rounds_and_auto_is_held_to_the_better() -> None:
    """Also where that is off; where its turns went is counted over the rounds, and a point of which
    one engine has no pass of the same round is left out."""
    passes = [made("off", tok_s, n) for n, tok_s in enumerate((50.0, 100.0, 300.0))]
    passes += [made("on", 2 * tok_s, n, acceptance=3.0) for n, tok_s in enumerate((50, 100, 300))]
    passes += [made("auto", 180.0, n, turns_at={"one": 1, "two": n}) for n in range(3)]
    prose_off = made("off", 50.0, kind="prose", turns_at={"its own": 2})  # a router, too
    passes += [prose_off, made("on", 40.0, kind="prose")]
    edits, prose = rows(passes)
    assert (edits.off_tok_s, edits.on_tok_s, edits.auto_tok_s) == pytest.approx((90, 180, 180))
    assert better(passes[:9]) == "on" and better(passes[9:]) == "off"
    assert edits.on_ratio == edits.on_whole_ratio == pytest.approx(2.0)
    assert edits.auto_ratio == pytest.approx((1.8 * 0.9 * 0.3) ** (1 / 3))
    assert (edits.acceptance, edits.break_even) == pytest.approx((3.0, 1.5))
    assert edits.auto_at == {"one": 3, "two": 3} and edits.auto_chosen is None
    assert (prose.on_ratio, prose.auto_tok_s, prose.acceptance) == (0.8, None, None)
    assert rows([*passes, made("off", 50.0, kind="code")]) == rows(passes)
    other = [made("off", 50.0, kind="code"), made("on", 50.0, 1, kind="code")]
    assert rows([*passes, *other]) == rows(passes)
    slow = rows([*passes, made("auto", 49.0, kind="prose")])[1]
    assert slow.auto_ratio == pytest.approx(0.98) and slow.error is None and slow.auto_at == {}


def test_what_drifts_for_all_is_not_in_a_ratio() -> None:
    """Nor in its error, which is of how far the rounds lie apart: two standard errors; a ratio that
    falls short by less may be chance."""
    drift = [(made("on", 10.0**n, n), made("auto", 0.9 * 10.0**n, n)) for n in range(4)]
    passes = [made("off", 0.1), *(each for both in drift for each in both)]
    (row,) = rows(passes)
    assert (row.auto_ratio, row.error) == pytest.approx((0.9, 0.0))
    assert "at 0 of 1 points, and below by more than the error at 1" in verdict([row])
    (row,) = rows([*passes[:4], made("auto", 11.0, 1)])
    assert row.auto_ratio == pytest.approx(math.sqrt(0.9 * 1.1))
    assert row.error == pytest.approx(math.exp(math.log(1.1 / 0.9)) - 1)
    short = [made("off", 10.0), made("on", 100.0), made("auto", 80.0)]
    (row,) = rows([*short, made("on", 100.0, 1), made("auto", 98.0, 1)])
    assert "at 0 of 1 points, and below by more than the error at 0" in verdict([row])
    assert "at 0 of 1 points, and below by more than the error at 0" in verdict(rows(short))


def test_what_its_choices_make_is_by_the_speeds_of_the_engines() -> None:
    """Half of the turns where they take twice as long take half as long again."""
    passes = [made("off", 50.0), made("on", 100.0)]
    auto = made("auto", 100.0, turns_at={"off": 6, "on": 6})
    (row,) = rows([*passes, auto])
    assert row.auto_chosen == pytest.approx(2 / 3) and row.auto_ratio == 1.0
    assert "at 1 of 1 points, and" in verdict([row]) and "choices at 0 of 1" in verdict([row])
    (row,) = rows([*passes, made("auto", 50.0, turns_at={"on": 12})])
    assert row.auto_chosen == 1.0 and row.auto_ratio == 0.5
    (row,) = rows([*passes, made("auto", 50.0, turns_at={"on": 11, "third": 1})])
    assert row.auto_chosen is None and "choices" not in verdict([row])


def test_what_is_not_told_is_a_dash() -> None:
    """And the verdict is on auto alone, which says where its turns went."""
    passes = [made("off", 100.0), made("on", 200.0)]
    console = Console(width=180)
    with console.capture() as shown:
        console.print(table(rows(passes)))
    assert "200.0 (2.00)" in shown.get() and " - " in shown.get()
    assert verdict(rows(passes)) == ""
    assert "at 0 of 1 points" in verdict(rows([*passes, made("auto", 190.0)]))
    went = made("auto", 190.0, turns_at={"one": 2, "two": 1})
    with console.capture() as shown:
        console.print(table(rows([*passes, went])))
    assert "one 2, two 1" in shown.get()
    assert "at 1 of 1 points" in verdict(rows([*passes, made("auto", 195.0)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_drawn_from_its_seed(kind: str) -> None:
    """It has as many turns as asked, the same of one seed, others of another."""
    script = conversation(kind, 3, 256, Random("1"))
    assert len(script.asked) == 3
    assert script == conversation(kind, 3, 256, Random("1"))
    assert script != conversation(kind, 3, 256, Random("2"))


def test_an_edit_is_shown_done_and_a_file_is_as_long_as_its_answer() -> None:
    """The example has the new name and not the old; longer answers are asked for with longer
    files, past the number of things that are known."""
    script = conversation("edits", 2, 2000, Random("1"))
    answer = script.before[1]["content"]
    assert "archive" in answer and "store" not in answer
    short = conversation("edits", 2, 200, Random("1"))
    assert len(script.asked[1]) > 5 * len(short.asked[1])


def test_the_next_edit_is_of_the_file_as_it_should_be_by_then() -> None:
    """Each turn has the names of the one before."""
    first, second, third = conversation("edits", 3, 100, Random("1")).asked
    assert first.count("store") > first.count("archive") == 1
    assert second.count("archive") > 3 and "store" not in second
    assert third.count("count") > 3 and "limit" not in third


def test_records_are_shown_as_json() -> None:
    """One a line, in the form that is asked for."""
    script = conversation("json", 1, 100, Random("1"))
    shown = script.before[1]["content"].splitlines()[1:-1]
    assert [set(json.loads(line)) for line in shown] == 2 * [
        {"name", "trade", "town", "age", "active"}
    ]
