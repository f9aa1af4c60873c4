#!/usr/bin/env bash
# Sends the server what its own description allows, and what it does not: schemathesis makes the requests of /openapi.json, and
# compares what comes back with what is described. Nothing may be an error of the server's, nor make its memory grow.
#
#   scripts/test-schema.sh              # some thousand systematic requests and some hundred random ones, in half a minute
#   scripts/test-schema.sh REQUESTS     # until there were at least so many altogether
#
# Needs Python 3; what it installs is in target/schema.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/target/schema
venv=$folder/venv
requests=${1:-0}
# Bytes that a server may have more of at the end: grammars are kept once they are compiled, up to a limit.
slack=$((32 << 20))

cargo build --release --locked -p moli-cli
cargo build --release --locked -p moli-testkit --example tiny
built=${CARGO_TARGET_DIR:-target}/release
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/schema/requirements.txt

work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server"; rm -rf "$work"' EXIT
"$built/examples/tiny" "$work"
# A small context bounds every answer, whatever its request asks for.
"$built/moli" serve "$work/tiny.gguf" --model "embedding=$work/tiny-embedding.gguf" --unload-after 0 --context 256 \
    --threads 1 --port 0 2>"$work/log" &
server=$!
for _ in $(seq 300); do
    url=$(grep -om1 'http://[0-9.:]*' "$work/log") && break
    kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done

export SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$PWD/tests/schema PYTHONDONTWRITEBYTECODE=1
# What a schema can't say makes a request wrong too: positive_data_acceptance would call that a mistake. It leaves notes where it
# runs.
send() {
    (cd "$folder" && "$venv/bin/schemathesis" run "$url/openapi.json" --exclude-checks positive_data_acceptance \
        --request-timeout 30 --continue-on-failure "$@")
}
metric() { curl --silent --fail "$url/metrics" | awk -v name="$1" '{ sub(/{.*}/, "", $1) } $1 == name { sum += $2 } END { print sum + 0 }'; }

send --phases coverage
before=$(metric moli_resident_bytes)
# In rounds: the more random requests it has made, the longer it takes to think of a new one.
while :; do
    send --phases fuzzing --max-examples 40
    if (($(metric moli_responses_total) >= requests)); then break; fi
done
after=$(metric moli_resident_bytes)

curl --silent --fail "$url/metrics" | grep '^moli_responses_total'
kill -0 "$server"
echo "resident: $before bytes before, $after after"
if ((after > before + slack)); then
    echo "the server's memory has grown" >&2
    exit 1
fi
if curl --silent --fail "$url/metrics" | grep -E '^moli_responses_total\{status="5' | grep -v '"503"'; then
    echo "the server has made mistakes" >&2
    exit 1
fi
