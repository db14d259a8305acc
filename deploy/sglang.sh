#!/bin/sh
# Starts SGLang as a replica for sessions, with what `sessile up` gives it: it reports what it found cached,
# publishes what it holds, orders by priority and keeps what sessions hold to the last. The arguments come after, and
# win; parsers of tool calls and reasoning are the model's, so they are among them.
set -eu
host_ratio=${SESSILE_HICACHE_RATIO:-2}
events='{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5657"}'
# Up to 0.5.17 the cache that knows sessions and has host memory, too, is only made where this asks for it.
export SGLANG_ENABLE_UNIFIED_RADIX_TREE=1
exec python3 -m sglang.launch_server \
  --host 0.0.0.0 --port 30000 --log-level-http warning \
  --enable-cache-report --enable-metrics \
  --page-size 16 --kv-events-config "$events" \
  --radix-eviction-policy lru --enable-session-radix-cache \
  --enable-priority-scheduling --disable-priority-preemption \
  --enable-hierarchical-cache --hicache-ratio "$host_ratio" \
  "$@"
