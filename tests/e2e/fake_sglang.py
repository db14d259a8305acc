"""Stands in for `sglang.launch_server`: a real server with its flags, its log lines, and a child.

FAKE_WAY says how it starts: `serve`, `slow` (it loads for a while), `memory` (it runs out),
`taken` (its port is, and it stays) or `strange` (it answers as no version that is known). How it
ends: `dies` (with its first turn, and a word) or `orderly` (SIGTERM gives it work to do first).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WITH_VALUE = (
    "--model-path", "--served-model-name", "--host", "--port", "--log-level-http", "--device",
    "--page-size", "--kv-events-config", "--max-lora-rank", "--lora-backend",
)  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """The pages that the router asks for."""

    def do_GET(self) -> None:
        pages: dict[str, object] = {
            "/ready": {},
            "/v1/models": {"data": [{"id": OPTIONS.served_model_name}]},
            "/server_info": {"version": "0.5.99", "random_seed": os.getpid()},
        }
        if os.environ.get("FAKE_WAY") == "strange":
            del pages["/server_info"]
        self.answer(pages.get(self.path))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if os.environ.get("FAKE_WAY") == "dies":
            print(f"RuntimeError: the kernel of {os.getpid()} was lost", flush=True)
            os._exit(3)
        message = {"role": "assistant", "content": "hello"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self.answer({"object": "chat.completion", "id": "1", "created": 1, "choices": choices})

    def answer(self, page: object) -> None:
        """`page` as JSON; 404 for None."""
        body = json.dumps(page or {}).encode()
        self.send_response(200 if page is not None else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def end_orderly(*_: object) -> None:
    """What an engine does when it is told to end: it finishes its work, which takes a moment."""
    print("draining", flush=True)
    time.sleep(1.5)
    print("all drained, goodbye", flush=True)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag in WITH_VALUE:
        parser.add_argument(flag)
    parser.add_argument("--enable-metrics", action="store_true")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--lora-target-modules", nargs="*", choices=("q_proj", "v_proj", "all"))
    OPTIONS = parser.parse_args()
    way = os.environ.get("FAKE_WAY", "serve")
    # Its scheduler: in a session of its own, and deaf, as the worst of them may be.
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", deaf, "fake-scheduler"], start_new_session=True)
    if way == "orderly":
        signal.signal(signal.SIGTERM, end_orderly)
    if way == "slow":
        print("[2026-01-01 00:00:00] Load weight begin. avail mem=1 GB", flush=True)
        time.sleep(1.5)
        print("[2026-01-01 00:00:01] KV Cache is allocated. #tokens: 1", flush=True)
        time.sleep(0.5)
    if way == "memory":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", flush=True)
        print("[2026-01-01 00:00:00] Received sigquit from a child process.", flush=True)
        sys.exit(1)
    if way == "taken":
        told = "[Errno 98] error while attempting to bind on address: address already in use"
        print(f"[2026-01-01 00:00:00] ERROR:    {told}", flush=True)
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", int(OPTIONS.port)), Handler).serve_forever()
