#!/usr/bin/env bash
# Tests the server's web page in a browser, Chromium without a window: against a mock server that answers whatever a test
# wants, hostile answers and broken connections included, and a conversation with a real server.
#
#   scripts/test-page.sh                       # starts target/release/moli with the model of the tests
#   MOLI_URL=http://host:port scripts/test-page.sh
#   MOLI_URL=off scripts/test-page.sh          # the mock server only
#   scripts/test-page.sh pictures              # makes the pictures of docs/page instead
#
# Needs Node 20 or newer with npm. Chromium comes from Debian's archive if there is none (CHROMIUM names another one), and
# the library that drives it, playwright-core, from npm's, into tests/page/node_modules.
set -euo pipefail
cd "$(dirname "$0")/.."
export CHROMIUM=${CHROMIUM:-/usr/bin/chromium}

install() {
    as_root=$([[ $(id -u) -eq 0 ]] || echo sudo)
    $as_root apt-get update -qq && $as_root apt-get install -y -qq --no-install-recommends "$@"
}
command -v npm >/dev/null || {
    echo "$0 needs Node 20 or newer with npm." >&2
    exit 1
}
[[ -x $CHROMIUM ]] || install chromium fonts-noto-cjk fonts-dejavu-core
wanted=$(node -p 'require("./tests/page/package.json").devDependencies["playwright-core"]')
if [[ $(node -p 'require("./tests/page/node_modules/playwright-core/package.json").version' 2>/dev/null) != "$wanted" ]]; then
    (cd tests/page && npm install --no-package-lock --no-audit --no-fund --silent)
fi

if [[ ${1:-} == pictures ]]; then
    command -v cwebp >/dev/null || install webp
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    node tests/page/screenshots.mjs "$work"
    mkdir -p docs/page
    for picture in "$work"/*.png; do
        cwebp -quiet -near_lossless 60 -m 6 "$picture" -o "docs/page/$(basename "$picture" .png).webp"
    done
    exit
fi

(cd tests/page && MOLI_URL='' node --test --test-concurrency=1 --test-reporter=spec)

url=${MOLI_URL:-}
if [[ $url == off ]]; then
    echo "MOLI_URL=off: the conversation with a real server is left out."
    exit
fi
if [[ -z $url ]]; then
    port=18473
    "${CARGO_TARGET_DIR:-target}/release/moli" serve smollm2-135m-instruct --host 127.0.0.1 --port $port &
    server=$!
    trap 'kill $server' EXIT
    url=http://127.0.0.1:$port/
    for _ in $(seq 120); do
        kill -0 $server || exit 1
        curl --silent --fail --output /dev/null "${url}v1/models" && break
        sleep 1
    done
fi
(cd tests/page && MOLI_URL=$url node --test --test-reporter=spec chat.test.mjs)
