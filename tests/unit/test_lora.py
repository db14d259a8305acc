"""Declared LoRA adapters become the flags of the engines that are to load them."""

import json
from pathlib import Path

import pytest

from sessile.engines.flags import Flags, read_help
from sessile.engines.lora import AdapterFacts, read_adapter, sglang, vllm

SGLANG = read_help(
    """  --enable-lora         Enable LoRA.
  --max-lora-rank MAX_LORA_RANK
  --lora-target-modules [{q_proj,v_proj,o_proj,all} ...]
                        Where LoRA is applied.
  --lora-paths [LORA_PATHS ...]
"""
)
VLLM = read_help(
    """  --enable-lora, --no-enable-lora
  --max-lora-rank {1,8,16,32,64,128,256,320,512}
                        Max LoRA rank. (default: 16)
  --max-loras MAX_LORAS
"""
)


def adapter(name: str, rank: int | None, *modules: str) -> AdapterFacts:
    """One of the model m."""
    return AdapterFacts(
        name=name, base="m", path=f"/a/{name}", rank=rank, modules=frozenset(modules)
    )


def test_an_adapter_s_own_file_tells_its_rank_and_its_modules(tmp_path: Path):
    """The modules by their last names; a pattern, or PEFT's word for all, is all of them."""
    for modules, names in (
        (["q_proj", "model.layers.0.self_attn.v_proj"], {"q_proj", "v_proj"}),
        ("all-linear", {"all"}),
        (".*_proj", {"all"}),
    ):
        about = {"r": 8, "target_modules": modules}
        (tmp_path / "adapter_config.json").write_text(json.dumps(about))
        found = read_adapter("a", "m", str(tmp_path))
        assert (found.name, found.base, found.rank) == ("a", "m", 8)
        assert found.modules == names


@pytest.mark.parametrize("text", ["", "[]", '{"r": "8"}', '{"r": 8}', '{"r": 0, "x": 1}'])
def test_an_adapter_that_does_not_tell_has_no_rank(tmp_path: Path, text: str):
    """Its file is none, or of another kind; one that the engine fetches has no folder here."""
    (tmp_path / "adapter_config.json").write_text(text)
    assert read_adapter("a", "m", str(tmp_path)).rank is None
    assert read_adapter("a", "m", "org/adapter").rank is None


def test_sglang_has_room_for_the_largest_rank_and_all_of_their_modules():
    """In flags of its own; one that adapts everything has it adapt everything."""
    adapters = [adapter("a", 8, "q_proj", "v_proj"), adapter("b", 24, "o_proj")]
    modules = ("o_proj", "q_proj", "v_proj")
    rank = ("--max-lora-rank", "24")
    enabled = ("--enable-lora", None)
    assert sglang(adapters, {}, SGLANG, cpu=False) == (
        [enabled, rank, ("--lora-target-modules", modules)], [],
    )  # fmt: skip
    flags, _ = sglang([*adapters, adapter("c", 1, "all")], {}, SGLANG, cpu=False)
    assert flags == [enabled, rank, ("--lora-target-modules", ("all",))]
    assert sglang([], {}, SGLANG, cpu=False) == ([], [])


def test_sglang_s_own_kernels_of_adapters_are_for_gpus():
    """On a CPU its first turn would end it."""
    flags, _ = sglang([adapter("a", 8, "q_proj")], {}, SGLANG, cpu=True)
    assert flags[-1] == ("--lora-backend", "torch_native")
    assert sglang([], {}, SGLANG, cpu=True) == ([], [])


def test_what_sglang_does_not_adapt_is_told_and_not_asked_for():
    """It would refuse to start for a word that it does not know."""
    adapters = [adapter("a", 8, "q_proj"), adapter("b", 4, "conv1", "q_proj")]
    flags, notes = sglang(adapters, {}, SGLANG, cpu=False)
    assert flags[-1] == ("--lora-target-modules", ("q_proj",))
    assert notes == ["adapter b: this SGLang adapts no conv1, and refuses it"]
    assert sglang(adapters[1:], {"--lora-target-modules": "all"}, SGLANG, cpu=False)[1] == []
    flags, notes = sglang([adapter("c", 4, "conv1")], {}, SGLANG, cpu=False)
    assert flags == [] and len(notes) == 1


@pytest.mark.parametrize(("rank", "room"), [(1, "1"), (8, "8"), (9, "16"), (300, "320")])
def test_vllm_takes_certain_ranks_only(rank: int, room: str):
    """The next that it lists; one whose help lists none is given the rank itself."""
    flags, notes = vllm([adapter("a", rank)], {}, VLLM)
    assert flags == [("--enable-lora", None), ("--max-lora-rank", room)] and notes == []
    unlisted = Flags({"--max-lora-rank": "--max-lora-rank"}, {})
    assert ("--max-lora-rank", str(rank)) in vllm([adapter("a", rank)], {}, unlisted)[0]


def test_vllm_runs_several_adapters_side_by_side():
    """By itself it would run one at a time."""
    adapters = [adapter(f"a{n}", 8) for n in range(12)]
    assert ("--max-loras", "3") in vllm(adapters[:3], {}, VLLM)[0]
    assert ("--max-loras", "8") in vllm(adapters, {}, VLLM)[0]


def test_a_rank_that_no_vllm_takes_is_told():
    """The others are served all the same."""
    flags, notes = vllm([adapter("a", 8), adapter("b", 1024)], {}, VLLM)
    assert ("--max-lora-rank", "512") in flags
    assert notes == ["adapter b: this vLLM takes no rank above 512, and refuses it"]


def test_an_adapter_that_tells_nothing_is_told_with_the_flags_to_add():
    """Those that tell are served; a rank in `args` is the remedy, and says that it is known."""
    unread = adapter("u", None)
    flags, (note,) = sglang([unread], {}, SGLANG, cpu=False)
    assert flags == [] and note == (
        "adapter u: no adapter_config.json can be read in /a/u, so the engine gets no room for it: "
        "give --enable-lora --max-lora-rank N --lora-target-modules NAME ... in pool.args"
    )
    flags, (note,) = vllm([unread, adapter("a", 8)], {}, VLLM)
    assert ("--max-lora-rank", "8") in flags
    assert note.endswith("give --enable-lora --max-lora-rank N in pool.args")
    assert vllm([unread], {"--max-lora-rank": "64"}, VLLM) == ([], [])


def test_adapters_that_args_names_size_the_engine_themselves():
    """Ours beside them would be too little for those."""
    assert sglang([adapter("a", 8, "q_proj")], {"--lora-paths": "b=/b"}, SGLANG, cpu=False) == (
        [],
        [],
    )
    assert vllm([adapter("a", 8)], {"--lora-modules": "b=/b"}, VLLM) == ([], [])
