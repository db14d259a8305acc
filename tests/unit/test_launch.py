"""Pools, a machine and an engine's flags become commands."""

import msgspec
import pytest

from sessile.engines.flags import Flags
from sessile.engines.launch import Asked, Launch, plan
from sessile.engines.lora import AdapterFacts
from sessile.engines.model_facts import ModelFacts
from sessile.engines.seat import Gpu, Installed, Machine
from sessile.errors import SettingsError
from sessile.pool_settings import PoolSettings
from sessile.router.engine import FeedSource

GIB = 2**30
HOST = Machine(
    gpus=(Gpu(0, 80 * GIB), Gpu(1, 80 * GIB)), host_bytes=400 * GIB, cores=16
)  # fmt: skip
CPU = Machine(host_bytes=20 * GIB, cores=2)
LLAMA = ModelFacts(
    source="/models/llama", name="llama", local=True, template="<|python_tag|>",
    weight_bytes=16 * GIB, kv_token_bytes=131072, vocabulary=128256,
)  # fmt: skip
NAMED = ModelFacts(source="org/m", name="org/m")
SGLANG = """--model-path --served-model-name --host --port --log-level-http --enable-metrics
    --enable-cache-report --tp-size --dp-size --context-length --max-running-requests --device
    --page-size --kv-events-config --radix-eviction-policy --enable-session-radix-cache
    --enable-priority-scheduling --disable-priority-preemption --tool-call-parser
    --reasoning-parser --max-total-tokens --mem-fraction-static --enable-hierarchical-cache
    --hicache-ratio --schedule-policy --disable-radix-cache --radix-cache-backend
    --speculative-algorithm --sleep-on-idle"""
VLLM = """--served-model-name --host --port --disable-uvicorn-access-log --block-size
    --enable-prompt-tokens-details --scheduling-policy --tensor-parallel-size --max-model-len
    --data-parallel-size --api-server-count
    --max-num-seqs --enable-prefix-caching --kv-events-config --enable-auto-tool-choice
    --tool-call-parser --reasoning-parser --gpu-memory-utilization --kv-cache-memory-bytes"""


def flags(names: str, choices: dict[str, str]) -> Flags:
    """A version that has these flags, some of them with a list of values."""
    values = {flag: frozenset(listed.split()) for flag, listed in choices.items()}
    return Flags({name: name for name in names.split()}, values)


def planned(
    pool: dict[str, object],
    machine: Machine = HOST,
    model: ModelFacts = LLAMA,
    names: str = SGLANG,
    draft: ModelFacts | None = None,
    adapters: tuple[AdapterFacts, ...] = (),
    choices: dict[str, str] | None = None,
    **found: bool,
) -> tuple[list[Launch], list[str]]:
    """The plan of one pool, ports counted from 20000, each run after the last."""
    settings = PoolSettings.model_validate({"engine": "sglang", "model": "x", **pool})
    engine = Installed(
        python="/env/bin/python", version="0.5.23", flags=flags(names, choices or {}), **found
    )
    free = iter(range(20000, 30000))

    def counted(count: int, run: int) -> list[int]:
        return [[next(free) for _ in range(run)][0] for _ in range(count)]

    asked = Asked(pool=settings, model=model, draft=draft, installed=engine, adapters=adapters)
    return plan([asked], machine, counted)


def test_an_sglang_a_gpu_has_what_a_session_router_wants():
    """The whole command, as it can be pasted."""
    launches, notes = planned({"tensor_parallel": 2})
    assert [launch.shown() for launch in launches] == [
        'PATH=/env/bin:"$PATH" CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1 '
        "SGLANG_ENABLE_UNIFIED_RADIX_TREE=1 /env/bin/python -m sglang.launch_server "
        "--model-path /models/llama --served-model-name llama --host 127.0.0.1 --port 20000 "
        "--log-level-http warning --enable-metrics --enable-cache-report --tp-size 2 "
        "--page-size 16 --kv-events-config "
        '\'{"publisher":"zmq","endpoint":"tcp://127.0.0.1:20001",'
        '"replay_endpoint":"tcp://127.0.0.1:20002","bind":true}\' '
        "--radix-eviction-policy lru --enable-session-radix-cache "
        "--enable-priority-scheduling --disable-priority-preemption "
        "--tool-call-parser llama3 --enable-hierarchical-cache --hicache-ratio 1.6"
    ]
    assert notes == []
    assert launches[0].url == "http://127.0.0.1:20000" and launches[0].model == "llama"


def test_a_vllm_has_it_in_its_own_flags():
    """Two on one GPU are told their KV memory, of which each has its share."""
    launches, _ = planned({"engine": "vllm", "replicas": 2, "gpus": (1,)}, names=VLLM)
    first, second = (launch.shown() for launch in launches)
    assert first == (
        'PATH=/env/bin:"$PATH" CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1 '
        "/env/bin/python -m vllm.entrypoints.cli.main serve /models/llama "
        "--served-model-name llama --host 127.0.0.1 --port 20000 --disable-uvicorn-access-log "
        "--enable-prompt-tokens-details --scheduling-policy priority --enable-prefix-caching "
        "--kv-events-config "
        '\'{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"ipc://@sessile-20001",'
        '"replay_endpoint":"tcp://127.0.0.1:20002"}\' '
        "--enable-auto-tool-choice --tool-call-parser llama3_json "
        f"--gpu-memory-utilization 0.45 --kv-cache-memory-bytes {18 * GIB}"
    )
    assert "--port 20003" in second and "CUDA_VISIBLE_DEVICES=1 " in second


def test_a_server_of_ranks_takes_the_gpus_and_ports_of_each():
    """KV events of rank N are N ports after those of the first; the host cache is shared out."""
    (one,), _ = planned({"data_parallel": 2})
    line = one.shown()
    assert "CUDA_VISIBLE_DEVICES=0,1 " in line and "--dp-size 2 " in line
    assert "--port 20000 " in line and ":20002" in line and ":20004" in line
    assert line.endswith("--hicache-ratio 1.9") and one.id == "local-0"
    (vllm,), notes = planned({"engine": "vllm", "data_parallel": 2}, names=VLLM)
    assert "--data-parallel-size 2 --api-server-count 1" in vllm.shown()
    assert '"endpoint":"tcp://*:' in vllm.shown()
    assert notes == ["vLLM publishes the KV events of several ranks on every interface"]
    two, _ = planned({"tensor_parallel": 2, "replicas": 1, "args": ["--dp-size=2"]})
    assert "--port 20000 " in two[0].shown() and ":20004" in two[0].shown()


def test_a_padded_draft_is_for_a_vllm_that_maps_its_tokens():
    """The other engines compare sizes once they have loaded both; a head is nobody's to compare."""
    model = msgspec.structs.replace(LLAMA, tokenizer="a")
    padded = ModelFacts(source="/models/d", name="d", vocabulary=128512, tokenizer="a")
    pool = {"gpus": 1, "speculation": {"method": "draft", "draft_model": "/models/d"}}
    names = f"{SGLANG} {VLLM} --speculative-config --speculative-draft-model-path"
    for engine in ("sglang", "vllm"):
        with pytest.raises(SettingsError, match="0.5.23 takes no draft whose vocab_size is ano"):
            planned({**pool, "engine": engine}, model=model, draft=padded, names=names)
    vllm = {**pool, "engine": "vllm"}
    (one,), _ = planned(vllm, model=model, draft=padded, names=names, maps_tokens=True)
    assert '"use_heterogeneous_vocab":true' in one.shown()
    head = msgspec.structs.replace(padded, eagle=True)
    auto = {"gpus": 2, "speculation": {"method": "auto", "draft_model": "/models/d"}}
    launches, _ = planned(auto, model=model, draft=head, names=names)
    assert "--speculative-algorithm EAGLE3" in launches[1].shown()


def test_a_vllm_for_adapters_may_load_them_while_it_runs():
    """Its flag alone would let it have those of its start only; cut short it is the same flag."""
    for args in (["--enable-lora"], ["--enable-lor"]):
        (launch,), _ = planned(
            {"engine": "vllm", "gpus": 1, "args": args}, names=f"{VLLM} --enable-lora"
        )
        assert launch.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    (launch,), _ = planned({"engine": "vllm", "gpus": 1}, names=VLLM)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in launch.env


def test_sglang_finds_its_parsers_itself_where_it_can():
    """Its newest versions list `auto`; an older one gets the names that it lists, or a word."""
    tools, reasoning = "--tool-call-parser", "--reasoning-parser"
    thinks = msgspec.structs.replace(LLAMA, template="<|python_tag|> <think> enable_thinking")
    listed = {tools: "auto llama3 qwen25", reasoning: "auto qwen3"}
    (one,), notes = planned({"gpus": 1}, model=thinks, choices=listed)
    assert f"{tools} auto {reasoning} auto" in one.shown() and notes == []
    (one,), notes = planned({"gpus": 1}, model=thinks, choices={tools: "llama3", reasoning: "kimi"})
    assert f"{tools} llama3" in one.shown() and reasoning not in one.shown()
    assert notes == ["SGLang 0.5.23 lacks --reasoning-parser qwen3: left out"]


def test_a_vllm_without_a_parser_of_tool_calls_is_told():
    """With the arguments to give; not where they are given, nor for a model that knows no tools."""
    vllm = {"engine": "vllm", "gpus": 1}
    unknown = msgspec.structs.replace(LLAMA, template="{% for tool in tools %}")
    for model in (unknown, NAMED):
        (one,), (note,) = planned(vllm, model=model, names=VLLM)
        assert note.startswith(
            f"{model.name}: no parser of its tool calls is known: they come as text"
        )
        assert "--enable-auto-tool-choice" in note and "--tool-call-parser" not in one.command
    args = {"args": ["--tool-call-parser", "hermes"]}
    assert planned({**vllm, **args}, model=unknown, names=VLLM)[1] == []
    plain = msgspec.structs.replace(LLAMA, template="<|im_start|>")
    assert planned(vllm, model=plain, names=VLLM)[1] == []
    assert planned(vllm, names=VLLM)[1] == []


def test_an_engine_is_started_for_the_adapters_of_its_model():
    """By the name that it is served under; those of others are no reason, and `args` win."""
    names = f"{SGLANG} {VLLM} --enable-lora --max-lora-rank --lora-target-modules"
    adapters = tuple(
        AdapterFacts(
            name=n, base=base, path="/a", rank=rank, modules=frozenset(("q_proj", "v_proj"))
        )
        for n, base, rank in (("a", "llama", 8), ("b", "mine", 16))
    )
    asked = "--enable-lora --max-lora-rank 8"
    (one,), notes = planned({"gpus": 1}, names=names, adapters=adapters)
    assert f"{asked} --lora-target-modules q_proj v_proj" in one.shown() and notes == []
    (one,), _ = planned({"engine": "vllm", "gpus": 1}, names=names, adapters=adapters)
    assert one.shown().endswith(asked) and one.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    args = ["--served-model-name", "mine", "--max-lora-rank", "64"]
    (one,), _ = planned({"gpus": 1, "args": args}, names=names, adapters=adapters)
    assert one.command.count("--max-lora-rank") == 1 and one.command[-4:] == tuple(args)
    assert "--enable-lora" in one.command
    (one,), _ = planned({"gpus": 1}, names=names, adapters=adapters[1:])
    assert "--enable-lora" not in one.command


def test_on_a_cpu_the_cores_are_shared_out_and_there_is_no_host_cache():
    """Without a GPU there is none to hide either, and who is idle leaves its core to the others."""
    launches, _ = planned({"replicas": 2, "env": {"A": "b c"}}, CPU)
    line = launches[1].shown()
    assert line.startswith(
        "PATH=/env/bin:\"$PATH\" OMP_NUM_THREADS=1 SGLANG_USE_CPU_ENGINE=1 A='b c' "
    )
    assert "--device cpu --sleep-on-idle" in line and "hicache" not in line
    assert "--sleep-on-idle" not in planned({"gpus": 1})[0][0].shown()
    (vllm,), _ = planned({"engine": "vllm"}, CPU, names=VLLM)
    assert "OMP_NUM_THREADS=2" in vllm.shown() and "--block-size 32" in vllm.shown()


def test_replicas_on_one_gpu_are_bounded_in_tokens():
    """SGLang's own fraction is of what is free when it starts, which is anything."""
    launches, _ = planned({"replicas": 2, "gpus": 1})
    for launch in launches:
        line = launch.shown()
        assert "--max-total-tokens 147456 --mem-fraction-static 0.95" in line
        assert "CUDA_VISIBLE_DEVICES=0 " in line and "--hicache-ratio 2" in line


def test_what_does_not_fit_on_a_gpu_is_refused():
    """Six replicas of 16 GiB of weights on 80, and a model of which nothing is known."""
    with pytest.raises(SettingsError, match=r"does not hold llama \(17\.2 GB of weights a GPU\)"):
        planned({"replicas": 6, "gpus": 1})
    with pytest.raises(SettingsError, match="org/m is not a local folder"):
        planned({"replicas": 2, "gpus": 1}, model=NAMED)
    launches, _ = planned(
        {"replicas": 2, "gpus": 1, "args": ["--max-total-tokens", "60000"]}, model=NAMED
    )
    assert launches[0].command.count("--max-total-tokens") == 1


def test_the_users_arguments_win():
    """Ours of the same name is not given, nor what does not go with theirs."""
    args = ["--page-size", "64", "--schedule-policy", "lpm", "--served-model-name", "mine",
            "--radix-eviction-policy", "slru"]  # fmt: skip
    (launch,), _ = planned({"gpus": 1, "args": args})
    assert launch.command[-8:] == tuple(args) and "lru" not in launch.command
    assert launch.command.count("--page-size") == 1 and launch.model == "mine"
    assert "--enable-priority-scheduling" not in launch.command
    (launch,), _ = planned({"gpus": 1, "args": ["--disable-radix-cache"]})
    for absent in (
        "--kv-events-config",
        "--radix-eviction-policy",
        "--enable-session-radix-cache",
        "--hicache-ratio",
    ):
        assert absent not in launch.command


def test_what_a_version_lacks_is_left_out_with_a_word():
    """Once for all replicas; and an older feed is on every interface, which is told too."""
    older = SGLANG.replace("--enable-session-radix-cache", "")
    launches, notes = planned({}, names=older, binds=False)
    assert len(launches) == 2
    assert notes == [
        "SGLang 0.5.23 publishes its KV events on every interface",
        "SGLang 0.5.23 lacks --enable-session-radix-cache: left out",
    ]
    assert "tcp://*:20001" in launches[0].shown() and '"bind"' not in launches[0].shown()


def test_arguments_that_a_version_does_not_list_are_told_and_given_all_the_same():
    """It may know them; if it does not, nobody has to wait for it to say so."""
    args = ["--hicache-ratio", "1.5", "--bogus", "1", "--page-siz=64"]
    (launch,), notes = planned({"gpus": 1, "args": args})
    assert notes == ["pool.args: SGLang 0.5.23 does not list --bogus"]
    assert launch.command[-5:] == tuple(args)


def test_pools_share_a_machine_without_being_in_each_other_s_way():
    """Ids and ports are theirs alone, GPUs are shared out, and host memory among all replicas."""
    llama, vllm = (
        Asked(
            pool=PoolSettings.model_validate({"engine": engine, "model": "x", **pool}), model=LLAMA,
            draft=None, installed=Installed(python="/p", version="1", flags=flags(names, {})),
        )
        for engine, names, pool in (
            ("sglang", SGLANG, {"replicas": 2, "gpus": 1}), ("vllm", VLLM, {"gpus": 1})
        )
    )  # fmt: skip
    free = iter(range(20000, 30000))
    host = Machine(gpus=HOST.gpus, host_bytes=120 * GIB, cores=16)
    launches, notes = plan([llama, vllm], host, lambda n, _: [next(free) for _ in range(n)], 3)
    assert [launch.id for launch in launches] == ["local-3", "local-4", "local-5"]
    assert [launch.engine for launch in launches] == ["sglang", "sglang", "vllm"]
    assert [launch.device for launch in launches] == ["0", "0", "1"] and notes == []
    assert len({launch.url for launch in launches}) == 3
    # Each has a third of half the host's memory, 20 GiB, beside 18 GiB of KV memory.
    assert all("--hicache-ratio 1.1" in launch.shown() for launch in launches[:2])
    alone, _ = plan([llama], host, lambda n, _: [next(free) for _ in range(n)])
    assert all("--hicache-ratio 1.6" in launch.shown() for launch in alone)


def test_a_host_with_little_memory_has_no_host_cache():
    """SGLang refuses one that is smaller than the KV memory."""
    small = Machine(gpus=HOST.gpus, host_bytes=40 * GIB, cores=16)
    (launch, _), notes = planned({}, small)
    assert "--enable-hierarchical-cache" not in launch.command
    assert notes == ["no host cache: 11 GB of host memory are less than the KV memory"]


def test_a_port_of_the_users_is_for_one_replica():
    """It is where the router looks for it; several cannot have it."""
    (launch,), _ = planned({"gpus": 1, "args": ["--port=31000"]})
    assert launch.url == "http://127.0.0.1:31000" and "20000" not in launch.shown().split()
    with pytest.raises(SettingsError, match="31000 is not a port that 2 replicas can have"):
        planned({"replicas": 2, "args": ["--port", "31000"]})


@pytest.mark.parametrize(
    ("pool", "names", "endpoint"),
    [
        ({}, SGLANG, "tcp://127.0.0.1:20001"),
        ({"engine": "vllm"}, VLLM, "ipc://@sessile-20001"),
        ({}, SGLANG.replace("--kv-events-config", ""), None),
        ({"data_parallel": 2}, SGLANG, None),
    ],
)
def test_the_pool_is_told_where_a_replica_publishes_its_kv_events(
    pool: dict[str, object], names: str, endpoint: str | None
):
    """Older engines do not tell it; of several ranks only the server knows whose feed is whose."""
    (launch, *_), _ = planned({"gpus": [0, 1], "replicas": 1, **pool}, names=names)
    feed = launch.spec.feed
    assert (feed and (feed.endpoint, feed.replay)) == (
        endpoint and (endpoint, "tcp://127.0.0.1:20002")
    )


def test_where_a_replica_publishes_is_read_off_the_args_that_win():
    """Whatever a user writes there."""
    told = '{"publisher": "zmq", "endpoint": "tcp://*:5557", "topic": "kv"}'
    for text, feed in ((told, FeedSource(endpoint="tcp://127.0.0.1:5557", topic="kv")),
                       (told.replace("zmq", "null"), None), ("{", None), ("[]", None)):  # fmt: skip
        (launch, *_), _ = planned({"gpus": [0], "args": ["--kv-events-config", text]})
        assert launch.spec.feed == feed
