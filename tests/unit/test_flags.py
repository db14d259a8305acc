"""An engine's flags: read from its help, merged with the user's."""

from sessile.engines.flags import given, merge, read_help

HELP = """usage: serve [-h] [--model-path MODEL_PATH] [--policy {lru,priority}]
             [--enable-cache, --no-enable-cache]

options:
  -h, --help            show this help message and exit
  --model-path MODEL_PATH, --model MODEL_PATH
                        The model, as in --not-a-flag.
  --tp-size TP_SIZE, --tensor-parallel-size TP_SIZE
                        GPUs.
  --tensor-parallel TP, -tp TP
  --policy {lru,priority}
                        Which goes first.
  --enable-cache, --no-enable-cache
                        Keep what was computed.
  --modules [{q,v} ...]
                        Several.
  --events-config EVENTS_CONFIG
  --port PORT           Port.
"""
KNOWN = read_help(HELP)


def test_the_flags_of_a_help_page_are_all_its_names():
    """Aliases and negations are names of one flag; what an explanation mentions is none."""
    assert KNOWN.first("--model") == KNOWN.first("--model-path") == "--model-path"
    assert KNOWN.first("--no-enable-cache") == "--enable-cache"
    assert KNOWN.first("-tp") == "--tensor-parallel"
    assert "--not-a-flag" not in KNOWN and "--port" in KNOWN


def test_a_flag_is_known_however_it_is_written():
    """With `=`, a key after a dot, underscores, or cut short where that names one flag only."""
    assert KNOWN.first("--model_path=x") == "--model-path"
    assert KNOWN.first("--events-config.topic") == "--events-config"
    assert KNOWN.first("--events") == "--events-config"
    assert KNOWN.first("--t") == "--t"


def test_the_values_of_a_choice_are_known():
    """A value that this version does not list is one that it lacks."""
    assert KNOWN.takes("--policy", "lru") and not KNOWN.takes("--policy", "tlru")
    assert KNOWN.takes("--modules", "q") and not KNOWN.takes("--modules", "x")
    assert KNOWN.takes("--port", "anything") and not KNOWN.takes("--absent", "x")


def test_the_users_arguments_win_and_no_flag_is_given_twice():
    """Ours of the same meaning is left out, whatever name the user took."""
    ours = [("--model-path", "a"), ("--tp-size", "2"), ("--enable-cache", None), ("--port", "1")]
    line, lacking = merge(ours, ["--model", "b", "--no-enable-cache", "--new", "-1"], KNOWN)
    assert line == [
        "--tp-size", "2", "--port", "1", "--model", "b", "--no-enable-cache", "--new", "-1",
    ]  # fmt: skip
    assert lacking == []


def test_what_this_version_lacks_is_left_out_and_told():
    """A flag, or a value of a flag."""
    ours = [("--new", None), ("--policy", "tlru"), ("--policy", "lru"), ("--other", "3"),
            ("--modules", ("q", "v")), ("--modules", ("q", "x"))]  # fmt: skip
    line, lacking = merge(ours, [], KNOWN)
    assert line == ["--policy", "lru", "--modules", "q", "v"]
    assert lacking == ["--new", "--policy tlru", "--other", "--modules q x"]


def test_the_value_of_a_flag_is_the_one_that_counts():
    """The last, also where it is joined by `=`; a flag without any has none."""
    args = ["--port", "1", "--port=2", "--enable-cache", "--policy", "lru"]
    assert given(args, KNOWN) == {"--port": "2", "--enable-cache": "", "--policy": "lru"}
