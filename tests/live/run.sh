#!/usr/bin/env bash
# Start two real replicas, run the live tests on them, stop them.
# usage: run.sh KIND BASE_PORT COMMAND...    runs `COMMAND... 0` and `COMMAND... 1`, which must serve
#        on ports BASE_PORT and BASE_PORT+1 of this machine and end on SIGTERM; see README.md
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4p' "$0"; exit 2; }
kind=$1 base=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
logs=$(mktemp -d)
pids=()
stop() {
  status=$?
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [ "$status" -eq 0 ]; then rm -r "$logs"; else echo "logs of the replicas: $logs" >&2; fi
  exit "$status"
}
trap stop EXIT
for index in 0 1; do
  "$@" "$index" >"$logs/replica-$index.log" 2>&1 &
  pids+=($!)
done
urls=()
for index in 0 1; do
  url=http://127.0.0.1:$((base + index))
  urls+=("$url")
  for ((waited = 0; waited < ${REPLICA_WAIT_S:-300}; waited++)); do
    curl -sf -m 5 -o /dev/null "$url/v1/models" && continue 2
    kill -0 "${pids[$index]}" 2>/dev/null || break
    sleep 1
  done
  echo "replica $index does not answer at $url" >&2
  tail -n 20 "$logs/replica-$index.log" >&2
  exit 1
done
export "SESSILE_LIVE_${kind^^}=${urls[0]},${urls[1]}"
"${PYTHON:-python}" -m pytest -m live "$here" -k "$kind" -v
