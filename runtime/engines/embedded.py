"""One embedded replica: llama.cpp's own HTTP server (package `xllamacpp`) in a process of its own.

`python -m sessile.engines.embedded --model FILE --alias NAME --port N ...` serves until SIGTERM,
or until its standard input ends, which it does when the process that started it is gone.
"""

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any

from sessile.engines.guard import end_asked

_HOST_CACHE_MIB = 512
_HTTP_THREADS = 256
"""Each turn has one until its end, and so has each look at its health."""
_STEP_TOKENS = 128
"""Of prompts, on a processor: it reads as fast by these as by llama.cpp's 2,048, and turns that
speak meanwhile wait for each step."""
_MOST_DRAFTED = 64


def check_processor() -> None:
    """Exit with one sentence if llama.cpp's wheel cannot run here: loading it would be SIGILL."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return  # not Linux: the loader will tell
    if " avx2 " not in flags.replace("\n", " \n"):
        sys.exit(
            "this processor has no AVX2, which the embedded engine needs; serve the model with an "
            "engine built for it and use: sessile serve --replica ENGINE=URL"
        )


def serve(arguments: argparse.Namespace) -> None:
    """Load the model and serve it; returns when told to stop."""
    check_processor()
    import xllamacpp  # type: ignore[import-untyped]

    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.model)
    params.model_alias = {arguments.alias}
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.n_parallel = arguments.slots
    # One KV memory for all slots: a lone session may use the model's whole context, and several
    # share what there is. Two whole contexts would not leave room for anything else in 1 GB.
    params.kv_unified = True
    params.n_ctx = _kv_tokens(arguments.context, arguments.slots)
    params.cache_ram_mib = _HOST_CACHE_MIB  # idle sessions wait here for their next turn
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.n_threads_http = _HTTP_THREADS
    if not _has_gpu(xllamacpp):
        drafted = (arguments.draft_tokens or _MOST_DRAFTED) if arguments.speculation else 0
        params.n_batch = max(_STEP_TOKENS, arguments.slots * (1 + drafted))  # all speak in one step
    params.endpoint_metrics = params.endpoint_slots = True
    params.ui = False
    params.use_jinja = True
    if arguments.chat_template:
        params.chat_template = arguments.chat_template.read_text()
    params.slot_save_path = os.path.join(arguments.slots_dir, "")
    params.verbosity = 1
    if arguments.speculation:
        _speculate(params.speculative, arguments)
    asked = end_asked()
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        sys.exit(1)  # llama.cpp has said why; what is raised does not
    print(f"serving {arguments.alias} on {server.listening_address}", flush=True)
    asked.get()
    # NOTE: llama.cpp's own shutdown waits for running turns; nobody is left to read them.
    os._exit(0)


def _speculate(speculative: Any, arguments: argparse.Namespace) -> None:
    """Draft by the method of llama.cpp's own name. A draft of n-grams is as long as what it found
    again, up to `draft_tokens`; `size_m` is that length."""
    import xllamacpp

    kind = f"COMMON_SPECULATIVE_TYPE_{arguments.speculation.upper()}"
    speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    if arguments.draft:
        speculative.draft.mparams.path = str(arguments.draft)
    if arguments.draft_tokens:
        speculative.draft.n_max = arguments.draft_tokens
        speculative.ngram_map_k.size_m = arguments.draft_tokens


def _has_gpu(xllamacpp: Any) -> bool:
    """Whether there is a device that would rather read longer parts of a prompt."""
    types = xllamacpp.ggml_backend_dev_type
    gpus = (types.GGML_BACKEND_DEVICE_TYPE_GPU, types.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return any(device["type"] in gpus for device in xllamacpp.get_device_info())


def _kv_tokens(context: int, slots: int) -> int:
    return context * 15 // 8 if slots > 1 else context


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--slots-dir", required=True)
    parser.add_argument("--chat-template", type=Path)
    parser.add_argument("--speculation")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--draft-tokens", type=int)
    serve(parser.parse_args())


if __name__ == "__main__":
    main()
