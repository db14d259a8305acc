#!/usr/bin/env bash
# Run one embedded llama.cpp replica as `sessile up` would, by itself.  usage: llamacpp_replica.sh INDEX
# Serves the small model on port 18500+INDEX; needs the extra `local`, and pulls the model once.
set -euo pipefail
sessile models pull smollm2-135m >&2
model=$(sessile models path smollm2-135m)
template=$("${PYTHON:-python}" -c "from sessile.engines.chat_template import SMOLLM2; print(SMOLLM2)")
# It serves until its standard input ends: one that ends when it does.
exec "${PYTHON:-python}" -m sessile.engines.embedded --model "$model" --alias smollm2-135m \
  --port $((18500 + $1)) --slots 2 --context 8192 --threads 1 --slots-dir "$(mktemp -d)" \
  --chat-template "$template" \
  < <(exec tail -f /dev/null --pid=$$)
