"""What `sessile up` gives an engine, to hold against commands that are written elsewhere."""

import json
import re

from sessile.engines import sglang_flags, vllm_flags
from sessile.engines.flags import Flags
from sessile.engines.model_facts import ModelFacts
from sessile.engines.seat import Installed, Seat
from sessile.pool_settings import PoolSettings

GIB = 2**30
ENGINES = {"sglang": (sglang_flags, "0.5.17"), "vllm": (vllm_flags, "0.32.0")}
OF_THE_PLACE = {"--model-path", "--served-model-name", "--host", "--port"}
EVENTS = "--kv-events-config"


def launched(engine, tensor_parallel=1):
    """The flags and variables of a replica alone on its GPUs, where there is much host memory."""
    module, version = ENGINES[engine]
    pool = PoolSettings(engine=engine, model="m", tensor_parallel=tensor_parallel)
    seat = Seat(
        pool=pool, model=ModelFacts(source="/m", name="m"), draft=None, adapters=(),
        installed=Installed(python="python", version=version, flags=Flags({}, {}), binds=False),
        gpus=tuple(range(tensor_parallel)), gpu_bytes=80 * GIB, share=None, alone=True,
        host_bytes=2000 * GIB, cores=8, ranks=1, port=1, events_port=2, replay_port=3,
    )  # fmt: skip
    flags, _ = module.flags(seat)
    words = [word for flag, value in flags for word in (flag, value) if word is not None]
    return settled(words), module.environment(seat)


def settled(words):
    """Each flag and its value, but for what depends on the place: addresses and ports."""
    found, flag = {}, None
    for word in words:
        if word.startswith("--"):
            flag = word
            found[flag] = None
        elif flag is not None and found[flag] is None:
            found[flag] = word
    told = json.loads(found[EVENTS])
    anywhere = {name: re.sub(r"(tcp|ipc)://.*", "//", text) if isinstance(text, str) else text
                for name, text in told.items()}  # fmt: skip
    return {n: v for n, v in found.items() if n not in OF_THE_PLACE} | {EVENTS: anywhere}
