#!/usr/bin/env bash
# Builds libcuda.so.1, a CUDA driver without a device, with the kernels compiled for this processor; see driver.cpp.
#
#   mock/build.sh FOLDER [FILE.cu ...]     all of ../kernels/*.cu unless files are named
#
# Needs g++ with C++17. What is up to date is not built again; two at once wait for each other.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ $# -gt 0 ]] || set -- "$here"/../kernels/*.cu
exec 9>"$out/lock"
flock 9

export CXX=${CXX:-g++}
flags=(-std=c++17 -O2 -fPIC -g1 -ffp-contract=off -fno-strict-aliasing -fwrapv -U_FORTIFY_SOURCE -fno-stack-protector
    -fvisibility=hidden -Wall "-I$here")
# fmaf is the same number without these, and slow.
grep -qsw fma /proc/cpuinfo && grep -qsw avx2 /proc/cpuinfo && flags+=(-mavx2 -mfma)
[[ -z ${MOLI_UCONTEXT:-} ]] || flags+=(-DMOLI_UCONTEXT)

# What a file has already is left alone, unless something beside it or here is newer: there is little to build.
up_to_date() { [[ -e $2 && -z $(find "$here" "$(dirname "$1")" -maxdepth 1 -type f -newer "$2" -print -quit) ]]; }

plain() { # FILE.cpp OBJECT
    "$CXX" "${flags[@]}" -O3 -c "$1" -o "$2"
}

kernels() { # FILE.cu OBJECT
    local name wrapper=${2%.o}.cpp
    name=$(basename "$1" .cu)
    local options=("${flags[@]}" "-DMOLI_FILE=${name//[^A-Za-z0-9_]/_}" -Wno-unused-function -Wno-unknown-pragmas -fno-threadsafe-statics
        -fsanitize=alignment,bounds -fno-sanitize-recover=all)
    # A namespace without a name: kernels and helpers of one file don't meet those of another.
    printf '#include "shim.h"\nnamespace {\n#include "%s"\n}\n' "$(realpath "$1")" >"$wrapper"
    # Kernels are found behind the preprocessor, so that those which macros make are among them.
    local registrations
    registrations=$("$CXX" "${options[@]}" -E -P "$wrapper" | tr '\n' ' ' |
        grep -oP 'extern "C" __attribute__\(\(__used__\)\)\s+void\s+\K\w+(?=\s*\()' | sed 's/.*/MOLI_REGISTER(&)/')
    printf '%s\n' "$registrations" >>"$wrapper"
    "$CXX" "${options[@]}" -c "$wrapper" -o "$2"
}

objects=()
compile() { # HOW FILE OBJECT
    objects+=("$3")
    up_to_date "$2" "$3" && return
    while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
    "$@" &
}
compile plain "$here/driver.cpp" "$out/driver.o"
compile plain "$here/exec.cpp" "$out/exec.o"
for file; do compile kernels "$file" "$out/$(basename "$file" .cu).kernels.o"; done
for job in $(jobs -p); do wait "$job"; done
"$CXX" -shared -pthread -Wl,-soname,libcuda.so.1 "${objects[@]}" -o "$out/libcuda.new"
mv "$out/libcuda.new" "$out/libcuda.so.1"
ln -sf libcuda.so.1 "$out/libcuda.so"
