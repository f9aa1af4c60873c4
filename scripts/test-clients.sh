#!/usr/bin/env bash
# Tests the server with the clients that people have, unmodified, in the versions that tests/clients pins.
#
#   scripts/test-clients.sh                         # all of tests/clients
#   scripts/test-clients.sh openai_test.py ...      # some of them
#
# Needs Python 3 and Node 20 or newer with npm; what it installs is in target/clients. MOLI_TEST_MODELS=off leaves out what
# needs a real model.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/clients/venv

cargo build --release --locked -p moli-cli
cargo build --release --locked -p moli-testkit --example tiny
built=${CARGO_TARGET_DIR:-target}/release

[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
# Node looks for packages beside the files that need them.
node=target/clients/node
mkdir -p "$node"
cp tests/clients/package.json tests/clients/*.mjs "$node"
npm install --prefix "$node" --silent --no-audit --no-fund

work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server"; rm -rf "$work"' EXIT
"$built/examples/tiny" "$work"
models=("$work/tiny.gguf" --model "embedding=$work/tiny-embedding.gguf")
models+=(--model "thinking=$work/tiny-thinking.gguf" --model "spare=$work/tiny-thinking.gguf")
[[ ${MOLI_TEST_MODELS:-} == off ]] || models+=(--model smollm2=smollm2-135m-instruct)
"$built/moli" serve "${models[@]}" --port 0 --threads 1 --queue 64 2>"$work/log" &
server=$!
# The port is one that is free: the server says which.
for _ in $(seq 300); do
    MOLI_URL=$(grep -om1 'http://[0-9.:]*' "$work/log") && break
    kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
export MOLI_URL PYTHONDONTWRITEBYTECODE=1

tests=("$@")
[[ $# -gt 0 ]] || tests=($(cd tests/clients && ls -- *_test.py *.test.mjs))
failed=()
for test in "${tests[@]}"; do
    echo "== $test"
    case $test in
    *.py) "$venv/bin/python" -m unittest discover --quiet --start-directory tests/clients --pattern "$test" || failed+=("$test") ;;
    *.mjs) node --test --test-reporter=spec "$node/$test" || failed+=("$test") ;;
    esac
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
