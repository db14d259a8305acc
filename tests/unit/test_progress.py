"""What an engine's own lines tell of its start and of its end."""

import pytest

from sessile.engines.progress import ending, last_words, remedy, stage


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[2026-11-27 06:53:36] Load weight begin. avail mem=16.15 GB", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]",
         "loading weights, 50 %"),
        ("(Worker pid=2) INFO 11-27 06:59:49 [cpu_model_runner.py:68] Starting to load model /m...",
         "loading weights"),
        ("[2026-11-27 06:53:39] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 16384",
         "KV memory allocated"),
        ("(EngineCore pid=2) INFO 11-27 06:59:51 [kv_cache_utils.py:2327] GPU KV cache size: 46,592"
         " tokens", "KV memory allocated"),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  10%|", "capturing graphs"),
        ("[2026-11-27 06:53:39] Capture cuda graph begin. This can take up to several minutes.",
         "capturing graphs"),
        ("[2026-11-27 06:53:42] The server is fired up and ready to roll!", "warming up"),
        ("[2026-11-27 06:52:21] server_args={'enable_hierarchical_cache': False, 'x': 'allocating "
         + "y" * 400 + " host memory'", "starting its processes"),
        ("(EngineCore pid=2) WARNING 11-27 09:52:54 [vllm.py:1703] Enforce eager set, disabling"
         " torch.compile, CUDAGraphs, and JIT kernel warmup", None),
        ("[2026-11-27 06:54:00] Decode batch, #running-req: 1", None),
    ],
)  # fmt: skip
def test_a_line_tells_what_the_engine_does(line, said):
    """Lines of SGLang 0.5.23 and vLLM 0.32."""
    assert stage(line) == said


def test_the_last_words_are_the_errors_not_the_noise_after_them():
    """Without stamps, once each; warnings and tracebacks' frames are not among them."""
    lines = [
        "x.py:71: UserWarning: 'python -m' is not supported",
        "[2026-11-27 06:53:39 TP0] Scheduler hit an exception: Traceback (most recent call last):",
        '  File "scheduler.py", line 10, in run',
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "[2026-11-27 06:53:40] Received sigquit from a child process. It usually means the child"
        " failed.",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "Killed",
    ]
    words = last_words(lines)
    assert words == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "fewer replicas" in (remedy(words) or "")


def test_vllm_tells_what_is_wrong_with_its_settings():
    """Below the error's name, and before all that it was given."""
    raised = "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"
    words = last_words(
        [
            "(APIServer pid=1)   File 'arg_utils.py', line 2594, in create_engine_config",
            f"(APIServer pid=1) {raised}",
            "(APIServer pid=1)   Value error, max_model_len (999999) is greater than 8192."
            " [type=value_error, input_value=ArgsKwargs((), {'model': '/m'}), input_type=Args]",
            "(APIServer pid=1)     For further information visit https://errors.pydantic.dev",
        ]
    )
    assert words == f"{raised} | Value error, max_model_len (999999) is greater than 8192."


def test_what_points_to_an_error_above_is_no_error_of_its_own():
    """Nor is the line that raised it."""
    cause = "ValueError: Available memory is less than requested memory for kv (40 GiB)."
    words = last_words(
        [
            f"(Worker pid=3) ERROR 11-27 17:03:48 [v1.py:9] {cause}",
            "(EngineCore pid=2) ERROR 11-27 17:03:49 [core.py:9]     raise RuntimeError(",
            "(EngineCore pid=2) ERROR 11-27 17:03:49 [core.py:9] RuntimeError: Worker failed with"
            " error 'Available memory', please check the stack trace above for the root cause",
            "Exception: WorkerProc initialization failed. See stack trace for root cause.",
        ]
    )
    assert words == cause and "fewer replicas" in (remedy(words) or "")


def test_llama_cpp_tells_which_file_it_could_not_load():
    """Whatever it says after that, and though it tries twice."""
    words = last_words(
        [
            "0.00.444.814 E llama_model_load: error loading model: tensor 'x' is not in the file",
            "0.00.444.825 E llama_model_load_from_file_impl: failed to load model",
            "0.01.139.907 E llama_model_load: error loading model: tensor 'x' is not in the file",
            "0.01.139.916 E llama_model_load_from_file_impl: failed to load model",
            "0.01.139.922 E srv    load_model: failed to load draft model, '/d.gguf'",
            "0.01.147.856 E srv          init: exiting due to model loading error",
        ]
    )
    assert words == (
        "llama_model_load: error loading model: tensor 'x' is not in the file | "
        "load_model: failed to load draft model, '/d.gguf'"
    )


def test_without_an_error_the_last_lines_are_its_last_words():
    """An engine that was killed says nothing of it."""
    assert last_words(["one", "", "two", "three", "four"]) == "two | three | four"
    assert last_words([]) == "" and remedy("two") is None


def test_what_an_engine_says_of_its_work_is_not_why_it_ended():
    """Nor who asked it what."""
    work = [
        "[2026-11-27 13:37:40] Prefill batch, #new-seq: 1, #new-token: 19, #cached-token: 16",
        "[2026-11-27 13:37:42] Decode batch, #running-req: 1, #token: 96, token usage: 0.01",
        "[2026-11-27 13:37:43] release_session s1: indexed 1 component leaves",
        '(APIServer pid=9) INFO:     127.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
        "(APIServer pid=9) INFO 11-27 13:37:44 [loggers.py:259] Engine 000: Avg prompt throughput:"
        " 4.2 tokens/s",
    ]
    assert last_words(work) == ""
    assert last_words(["loading", *work]) == "loading"


def test_a_warning_that_speaks_of_errors_is_not_why_an_engine_ended():
    """vLLM warns of one at every start."""
    lines = [
        "(APIServer pid=1) WARNING 11-27 09:52:06 [system_utils.py:286] Found ulimit of 20000. This"
        " can cause fd limit errors like `OSError: [Errno 24] Too many open files`.",
        "(APIServer pid=1) INFO:     Application startup complete.",
    ]
    assert last_words(lines[:1] + ["ValueError: no"]) == "ValueError: no"
    assert last_words(lines[1:]) == "INFO:     Application startup complete."
    assert last_words(lines).endswith("Application startup complete.")


def test_a_signal_is_told_by_its_name():
    """And what SIGKILL mostly means, where nobody sent it: an engine that has told of an error has
    ended itself."""
    assert ending(1) == "ended with 1"
    assert ending(-9) == "was killed by SIGKILL"
    assert ending(-99) == "was killed by signal 99"
    killed = f"its process {ending(-9)} after 20.0 s"
    assert "memory is used up" in (remedy(killed) or "")
    assert remedy(f"{killed}: ValueError: no such model type") is None
    assert "pool.memory" in (remedy(f"{killed}: torch.OutOfMemoryError: out of memory") or "")


def test_a_bad_flag_and_a_taken_port_have_a_remedy():
    """As argparse and the operating system say them."""
    assert remedy("launch_server.py: error: unrecognized arguments: --bogus") == "correct pool.args"
    assert "--port" in (remedy("OSError: [Errno 98] Address already in use") or "")


def test_weights_that_are_cut_off_are_to_be_fetched_again():
    """As the libraries of SGLang and vLLM, and llama.cpp, say it."""
    for words in (
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata",
        "error loading model: data is not within the file bounds, model is corrupted or incomplete",
    ):
        assert remedy(words) == "fetch the model's files again"


def test_an_error_that_is_called_a_warning_is_told():
    """SGLang calls so what ends it; a frame of its traceback tells nothing."""
    told = "ValueError: Warning: User-specified context_length (999999) is greater than the derived"
    words = last_words(
        [
            "x.py:76: UserWarning: Only CUDA supports it.",
            '  File "model_config.py", line 1314, in _derive_context_length',
            "    raise ValueError(",
            told,
        ]
    )
    assert words == told and remedy(words) == "give a shorter context_tokens"
    assert last_words(["loading", '  File "a.py", line 1, in run']) == "loading"


@pytest.mark.parametrize(
    "words",
    [
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        "ValueError: Loaded weights leave no GPU memory for the KV cache under 0.1.",
        "ValueError: No available memory for the cache blocks.",
        "ValueError: 5 GiB KV cache is needed, which is larger than the available KV cache memory",
    ],
)
def test_an_engine_without_room_for_kv_memory_is_to_be_given_more(words):
    """Of what it was told to take; a lower share would be the wrong advice."""
    told = remedy(words) or ""
    assert "a higher pool.memory" in told and "lower" not in told
