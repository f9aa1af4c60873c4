#!/usr/bin/env bash
# Tests what the server's process does to the machine around it:
# - with --offline it connects to nobody and looks no name up, in a whole run of load, chat, embed and stop, as strace sees it;
# - killed in the middle of an answer and started again, it is ready within two seconds;
# - told to stop in the middle of answers, it finishes them all.
#
#   scripts/test-process.sh
#
# Needs curl; strace comes from Debian's archive if there is none. With MOLI_TEST_MODELS=off a tiny model stands in for the
# real one.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v strace >/dev/null || {
    as_root=$([[ $(id -u) -eq 0 ]] || echo sudo)
    $as_root apt-get update -qq && $as_root apt-get install -y -qq --no-install-recommends strace
}
cargo build --release --locked -p moli-cli
cargo build --release --locked -p moli-testkit --example tiny
built=${CARGO_TARGET_DIR:-target}/release

work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill -9 "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
"$built/examples/tiny" "$work"
model=smollm2-135m-instruct
if [[ ${MOLI_TEST_MODELS:-} == off ]]; then model=$work/tiny.gguf; else "$built/moli" pull "$model"; fi

fail() {
    echo "failed: $*" >&2
    exit 1
}

# serve PORT COMMAND...: starts it and waits until it is ready.
serve() {
    : >"$work/log"
    "${@:2}" --port "$1" 2>"$work/log" &
    server=$!
    for _ in $(seq 1000); do
        kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; fail "it ended"; }
        if url=$(grep -om1 'http://127[0-9.:]*' "$work/log") && curl --silent --fail "$url/ready" >/dev/null; then return; fi
        sleep 0.02
    done
    fail "it was not ready in 20 s"
}

# chat TOKENS FILE: what a streamed answer of so many tokens sends.
chat() {
    curl --silent --fail --no-buffer "$url/v1/chat/completions" -o "$2" -d '{"model": "chat", "stream": true,
        "max_tokens": '"$1"', "ignore_eos": true, "messages": [{"role": "user", "content": "Count to a thousand."}]}'
}

# has FILE TEXT: waits until the file has it.
has() {
    for _ in $(seq 500); do
        grep -q "$2" "$1" 2>/dev/null && return
        sleep 0.02
    done
    fail "no $2 in $1"
}

echo "== offline"
# Every connection, every message that needs none, and the files that say where names are looked up.
traced=(strace -f -qq -e trace=connect,sendto,sendmsg,sendmmsg,openat,open)
foreign() {
    grep -E 'connect\(.*AF_INET|sendto\(.*AF_INET|sendm.*AF_INET' "$1" |
        grep -vE 'inet_addr\("127\.|inet_pton\(AF_INET6, "::1"' ||
        grep -E 'resolv\.conf|nsswitch\.conf|/etc/hosts"|nscd' "$1"
}
# That this is seen at all: without --offline, in a cache where there is nothing, a model has to be fetched.
: >"$work/online"
MOLI_HOME=$work/partial timeout --foreground 60 "${traced[@]}" -o "$work/online" \
    "$built/moli" pull smollm2-135m-instruct >/dev/null 2>&1 &
download=$!
for attempt in $(seq 600); do
    foreign "$work/online" >/dev/null && break
    ((attempt < 600)) || fail "strace did not see a download"
    sleep 0.1
done
kill "$download" 2>/dev/null || true
wait "$download" 2>/dev/null || true
# With it, that is refused at once.
if MOLI_HOME=$work/empty timeout 20 "${traced[@]}" -o "$work/refused" \
    "$built/moli" serve smollm2-135m-instruct --offline --port 0 >/dev/null 2>"$work/log"; then
    fail "it served a model that is not there"
fi
grep -q offline "$work/log" || fail "it does not say that it is offline: $(cat "$work/log")"

serve 0 "${traced[@]}" -o "$work/trace" "$built/moli" serve --offline --model "chat=$model" \
    --model "embedding=$work/tiny-embedding.gguf"
chat 16 "$work/answer"
grep -q 'data: \[DONE\]' "$work/answer" || fail "no whole answer"
curl --silent --fail "$url/v1/embeddings" -d '{"model": "embedding", "input": "a text"}' | grep -q '"embedding"' ||
    fail "no vector"
curl --silent --fail "$url/metrics" >/dev/null
# strace passes the signal on to nobody: the server is its child.
kill -TERM "$(pgrep -P "$server")"
wait "$server" || fail "it ended with $?"
for trace in "$work/refused" "$work/trace"; do
    [[ -s $trace ]] || fail "strace saw nothing"
    if foreign "$trace"; then fail "it spoke to others"; fi
done
echo "ok: $(grep -c 'openat\|open(' "$work/trace") files opened, no connection but loopback's, no name looked up"

echo "== killed and started again"
serve 0 "$built/moli" serve --offline --model "chat=$model"
port=${url##*:}
chat 4000 "$work/cut" &
client=$!
has "$work/cut" '"content"'
kill -9 "$server"
wait "$server" 2>/dev/null || true
wait "$client" && fail "the answer came to its end before"
start=$(date +%s%N)
serve "$port" "$built/moli" serve --offline --model "chat=$model"
ready=$((($(date +%s%N) - start) / 1000000))
chat 4 "$work/answer"
grep -q 'data: \[DONE\]' "$work/answer" || fail "no answer afterwards"
((ready < 2000)) || fail "ready after $ready ms"
echo "ok: ready after $ready ms"

echo "== told to stop under load"
# Eight of them are computed, four wait: all twelve were accepted.
clients=()
for number in $(seq 12); do
    chat 200 "$work/load$number" &
    clients+=($!)
done
running() { curl --silent "$url/metrics" | awk '/^moli_requests_(running|waiting)/ { sum += $2 } END { print sum + 0 }'; }
for attempt in $(seq 500); do
    [[ $(running) -eq 12 ]] && break
    ((attempt < 500)) || fail "$(running) of 12 are there"
    sleep 0.01
done
kill -TERM "$server"
for attempt in $(seq 100); do
    # Whoever still asks is told so, until there is nobody left to finish.
    [[ $(curl --silent --output /dev/null --write-out '%{http_code}' "$url/ready" || true) == 200 ]] || break
    ((attempt < 100)) || fail "it says that it is ready"
    sleep 0.01
done
for client in "${clients[@]}"; do
    wait "$client" || fail "an answer was lost"
done
for number in $(seq 12); do
    grep -q 'data: \[DONE\]' "$work/load$number" || fail "answer $number is not whole"
    grep -q '"finish_reason":"length"' "$work/load$number" || fail "answer $number was cut short"
done
wait "$server" || fail "it ended with $?"
server=
echo "ok: 12 of 12 answers came to their end"
