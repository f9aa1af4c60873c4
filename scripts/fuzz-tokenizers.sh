#!/usr/bin/env bash
# Compares the tokenizers of all families with the reference implementations on many random texts, and their decoding and streaming.
#
#   pip install tokenizers sentencepiece protobuf
#   scripts/fuzz-tokenizers.sh [TEXTS]      # 100,000 for each family
#
# `cargo test` does the same with the few texts that are committed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 crates/moli-text/tests/fixtures/tokenizers/make.py --texts "${1:-100000}" --into "$folder"
MOLI_TOKENIZER_FIXTURES=$folder cargo test --release --workspace --locked --test families --test wordpiece
