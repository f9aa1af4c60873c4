#!/usr/bin/env bash
# Builds libcuda.so.1, a CUDA driver without a device, with the kernels compiled for this processor; see driver.cpp. Beside it
# libnvidia-ml.so.1, the sensors of its devices; see nvml.cpp.
#
#   mock/build.sh FOLDER [MODULES]     ../kernels/modules.txt, unless another list or one source is named
#
# A list has a line for each module: its name, its source beside the list, and what the source is compiled with (NAME=VALUE ...).
# Needs g++ with C++17, and perl. What is up to date is not built again; two at once wait for each other. MOLI_UCONTEXT=1 (and a
# folder of its own) switches threads as on processors that exec.cpp knows nothing of.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
list=$(realpath "${2:-$here/../kernels/modules.txt}")
sources=$(dirname "$list")
exec 9>"$out/lock"
flock 9

export CXX=${CXX:-g++}
flags=(-std=c++17 -O2 -fPIC -g1 -ffp-contract=off -fno-strict-aliasing -fwrapv -U_FORTIFY_SOURCE -fno-stack-protector
    -fvisibility=hidden -Wall "-I$here")
# fmaf is the same number without these, and slow.
if [[ $("$CXX" -dumpmachine) == x86_64* ]] && grep -qsw fma /proc/cpuinfo && grep -qsw avx2 /proc/cpuinfo; then
    flags+=(-mavx2 -mfma)
fi
[[ -z ${MOLI_UCONTEXT:-} ]] || flags+=(-DMOLI_UCONTEXT)

# Is there an object newer than all that is here and beside the sources? There is too little to look more closely.
up_to_date() { [[ -e $1 && -z $(find "$here" "$sources" -maxdepth 1 -type f -newer "$1" -print -quit) ]]; }

plain() { # OBJECT FILE.cpp
    "$CXX" "${flags[@]}" -O3 -c "$here/$2" -o "$1"
}

kernels() { # OBJECT FILE.cu [NAME=VALUE ...]
    local text=${1%.o}.ii module
    module=$(basename "$1" .kernels.o)
    local options=("${flags[@]}" "-DMOLI_MODULE=$module" "${@:3}" -Wno-unused-function -Wno-unknown-pragmas
        -fno-threadsafe-statics -fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero -fno-sanitize-recover=all)
    # In a namespace of its own a module's names don't meet those of C, such as select; in one without a name they don't meet
    # those of other modules. Kernels are found behind the preprocessor, which makes some of them, and get names that none of
    # their helpers has.
    printf '#include "shim.h"\nnamespace of_%s {\nnamespace {\n#include "%s"\n}\n}\n' "$module" "$sources/$2" |
        "$CXX" "${options[@]}" -E -x c++ - |
        MODULE=$module perl -0pe '
            my $registrations = "";
            my $of = sub {
                $registrations .= "static const MoliRegistration<of_$ENV{MODULE}::kernel_$_[0]> register_$_[0](" .
                    "\"$_[0]\", __start_shared_$ENV{MODULE}, __stop_shared_$ENV{MODULE});\n";
                "kernel_$_[0]";
            };
            s/extern "C" (__attribute__\(\(__used__\)\)\s+void\s+)(\w+)(?=\s*\()/$1 . $of->($2)/ge;
            $_ .= $registrations;' >"$text"
    "$CXX" "${options[@]}" -c "$text" -o "$1"
}

up_to_date "$out/libnvidia-ml.so.1" ||
    "$CXX" "${flags[@]}" -shared -Wl,-soname,libnvidia-ml.so.1 "$here/nvml.cpp" -o "$out/libnvidia-ml.so.1"

objects=()
compile() { # HOW OBJECT ...
    objects+=("$2")
    up_to_date "$2" && return
    while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
    "$@" &
}
for part in driver device exec; do compile plain "$out/$part.o" "$part.cpp"; done
if [[ $list == *.cu ]]; then modules="$(basename "$list" .cu) $(basename "$list")"; else modules=$(grep -v '^#' "$list"); fi
while read -r name source definitions; do
    [[ -n $name ]] || continue
    read -ra definitions <<<"$definitions"
    compile kernels "$out/$name.kernels.o" "$source" "${definitions[@]/#/-D}"
done <<<"$modules"
for job in $(jobs -p); do wait "$job"; done
"$CXX" -shared -pthread -Wl,-soname,libcuda.so.1 "${objects[@]}" -o "$out/libcuda.new"
mv "$out/libcuda.new" "$out/libcuda.so.1"
ln -sf libcuda.so.1 "$out/libcuda.so"
