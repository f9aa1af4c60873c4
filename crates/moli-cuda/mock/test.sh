#!/usr/bin/env bash
# Builds the mock driver with its sample kernels in FOLDER (a temporary one unless named), and tests it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ $# -gt 0 ]]; then out=$1; else out=$(mktemp -d) && trap 'rm -rf "$out"' EXIT; fi
"$here/build.sh" "$out" "$here/test_kernels.cu"
"${CXX:-g++}" -std=c++17 -O1 -Wall "$here/test.cpp" -o "$out/test" -ldl
"$out/test" "$out/libcuda.so.1"
