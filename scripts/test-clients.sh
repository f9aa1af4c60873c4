#!/usr/bin/env bash
# Tests the server with the official clients of the APIs that it speaks, as they are published: tests/clients.
#
#   scripts/test-clients.sh                       # builds moli and serves what the tests need
#   scripts/test-clients.sh test_ollama.py        # some of them
#   MOLI_URL=http://host:port scripts/test-clients.sh
#
# A server of one's own needs the models smollm2-135m-instruct, `tiny` of the example `thinker` of moli-testkit, and `spare`,
# the same once more, loaded on demand. Needs Python 3.9 or newer with venv; the clients go to target/clients.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=target/clients
python=$folder/bin/python

[[ -x $python ]] || python3 -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt

if [[ -z ${MOLI_URL:-} ]]; then
    cargo build --release --locked -p moli-cli
    cargo run --release --locked --quiet -p moli-testkit --example thinker -- "$folder/tiny.gguf"
    log=$folder/server.log
    "${CARGO_TARGET_DIR:-target}/release/moli" serve smollm2-135m-instruct --port 0 \
        --model tiny="$folder/tiny.gguf" --model spare="$folder/tiny.gguf" 2>"$log" &
    server=$!
    trap 'kill $server 2>/dev/null; wait $server || true' EXIT
    for _ in $(seq 600); do
        MOLI_URL=$(sed -n 's|.* at \(http://[0-9.:]*\).*|\1|p' "$log" | head -n 1)
        [[ -z $MOLI_URL ]] || break
        # The first time a model is pulled.
        kill -0 $server || { cat "$log" >&2; exit 1; }
        sleep 0.5
    done
    export MOLI_URL
fi
"$python" -W ignore::ResourceWarning -m unittest discover --start-directory tests/clients --pattern "${1:-test_*.py}" --verbose
