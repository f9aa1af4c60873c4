#!/usr/bin/env bash
# Makes the Python environment in which scripts/peer-llama-cpp.py runs: llama.cpp, built for this machine.
#
#   scripts/peers-venv.sh            # in target/peers
#   scripts/peers-venv.sh FOLDER
#
# llama-cpp-python comes as source with llama.cpp in it, so that everybody measures the same one; compiling it takes about ten
# minutes on two cores and needs a C++ compiler. Once it is there this does nothing.
set -euo pipefail
version=0.3.36
venv=${1:-$(cd "$(dirname "$0")/.." && pwd)/target/peers}

if "$venv/bin/python" -c "import llama_cpp, sys; sys.exit(llama_cpp.__version__ != '$version')" 2>/dev/null; then
    echo "llama-cpp-python $version is in $venv already"
    exit
fi
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
# The build's own tools, so that it needs none of the system's but the compiler.
"$venv/bin/pip" install --quiet --disable-pip-version-check cmake ninja scikit-build-core
# LLAVA_BUILD is the part that reads images, and LLAMA_OPENSSL the one that downloads: no use here.
PATH="$venv/bin:$PATH" CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF" \
    "$venv/bin/pip" install --disable-pip-version-check --no-build-isolation \
    --no-binary llama-cpp-python "llama-cpp-python==$version"
echo "llama-cpp-python $version is in $venv"
