#!/bin/sh
# Starts SGLang as a replica for sessions: it reports what it found cached, publishes what it holds,
# orders by priority and keeps what sessions hold to the last. The arguments come after, and win.
set -eu
host_ratio=${SESSILE_HICACHE_RATIO:-2}
events='{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558"}'
exec python3 -m sglang.launch_server \
  --host 0.0.0.0 --port 30000 \
  --enable-cache-report --enable-metrics \
  --kv-events-config "$events" --page-size 16 \
  --schedule-policy fcfs --enable-priority-scheduling --schedule-low-priority-values-first \
  --enable-hierarchical-cache --hicache-ratio "$host_ratio" \
  "$@"
