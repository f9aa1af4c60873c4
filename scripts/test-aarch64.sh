#!/usr/bin/env bash
# Runs the aarch64 kernels on emulated processors, for those who have no real one: the unit tests of moli-kernels, and an
# answer of a real model, which must have the tokens and the probabilities, to the last bit, that this machine gives.
#
#   scripts/test-aarch64.sh
#
# QEMU tells right from wrong, never fast from slow. For Debian 12 on x86-64, whose packages bring the compiler, the
# libraries and the emulator. MOLI_TEST_MODELS=off leaves the answer out.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web cargo-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)
command -v dpkg >/dev/null && [[ $(dpkg --print-architecture) == amd64 ]] || {
    echo "$0 needs Debian on x86-64: it takes its compiler and emulator from there." >&2
    exit 1
}
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    as_root=$([[ $(id -u) -eq 0 ]] || echo sudo)
    $as_root dpkg --add-architecture arm64 &&
        $as_root apt-get update -qq &&
        $as_root apt-get install -y -qq --no-install-recommends "${packages[@]}" || {
        echo "$0 could not install ${packages[*]}: it needs root and Debian's archive." >&2
        exit 1
    }
fi

# The emulator finds the libraries of libc6:arm64 by itself. (Those of the cross compiler have another version, and a
# program that gets one half from each hangs when it starts a thread.)
target=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
folder=${CARGO_TARGET_DIR:-target}/aarch64
# Debian's cargo and compiler, beside those of this machine.
debian_cargo() {
    RUSTC=/usr/bin/rustc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc /usr/bin/cargo "$@" \
        --release --locked --target $target --target-dir "$folder"
}

debian_cargo build -p moli-cli
emulated=$folder/$target/release/moli
# Without this check the tests would pass by leaving instruction sets out.
for cpu_isa in max=neon-i8mm cortex-a76=neon-dotprod cortex-a53=neon; do
    qemu-aarch64-static -cpu "${cpu_isa%=*}" "$emulated" --version | grep -w -- "${cpu_isa#*=}" || {
        echo "Moli does not find ${cpu_isa#*=} on the emulated processor ${cpu_isa%=*}." >&2
        exit 1
    }
done

for cpu in max cortex-a53; do
    echo "Unit tests on $cpu:"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu $cpu"
    debian_cargo test -p moli-kernels --lib
done

if [[ ${MOLI_TEST_MODELS:-} == off ]]; then
    echo "MOLI_TEST_MODELS=off: the answer of a real model is left out."
    exit
fi
cargo build --release --locked -p moli-cli
native=${CARGO_TARGET_DIR:-target}/release/moli
model=smollm2-135m-instruct
"$native" pull "$model"
tokens() { # what to run
    "$@" run "$model" --raw -p "The capital of France is" -n 8 --logprobs 3 --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["tokens"])'
}
expected=$(tokens "$native")
for cpu in max cortex-a76 cortex-a53; do
    actual=$(tokens qemu-aarch64-static -cpu "$cpu" "$emulated")
    if [[ "$actual" != "$expected" ]]; then
        printf 'On %s %s answers\n%s\nwhere this machine answers\n%s\n' "$cpu" "$model" "$actual" "$expected" >&2
        exit 1
    fi
    echo "$model gives the same tokens and probabilities on $cpu."
done
