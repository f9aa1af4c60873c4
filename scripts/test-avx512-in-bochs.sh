#!/usr/bin/env bash
# Runs the unit tests of moli-kernels on an emulated processor with AVX-512 VNNI, for those who have none.
#
#   scripts/test-avx512-in-bochs.sh                      # the tests of instruction sets and products
#   scripts/test-avx512-in-bochs.sh extreme_bytes isa    # those whose names hold one of these words
#
# Bochs interprets every instruction, some hundred times slower than a processor: it tells right from wrong, never fast
# from slow. It runs a whole machine, so this boots Debian's kernel with the test binary as nearly its only program.
# For Debian 12 on x86-64. LIMIT is the most seconds to wait (default 1800).
set -euo pipefail
[[ $# -gt 0 ]] || set -- isa:: matmul::
cd "$(dirname "$0")/.."

missing=()
for package in bochs bochsbios vgabios cpio xorriso; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [[ ${#missing[@]} -gt 0 ]]; then
    as_root=$([[ $(id -u) -eq 0 ]] || echo sudo)
    $as_root apt-get update -qq
    $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

tests=$(cargo test --release --locked -p moli-kernels --lib --no-run --message-format=json-render-diagnostics |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{packages,debian,iso} "$work"/root/{bin,dev,proc,tmp}

# A kernel, a boot loader and a shell, unpacked and never installed.
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
(cd "$work/packages" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" \
    "$kernel" busybox-static isolinux syslinux-common)
for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/debian"; done

# The first file system: the shell, the tests and their libraries.
cp "$(find "$work/debian" -type f -path '*bin/busybox')" "$work/root/bin/"
strip -o "$work/root/tests" "$tests"
ldd "$tests" | grep -o '/[^ ]*' | while read -r library; do
    install -D "$library" "$work/root$library"
done
cat >"$work/root/init" <<EOF
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo TESTS-BEGIN
# Without this check the tests would pass by leaving AVX-512 out.
if /bin/busybox grep -qw avx512_vnni /proc/cpuinfo; then
    (cd /tmp && /tests --test-threads=1 $(printf '%q ' "$@"))
else
    echo "The emulated processor has no avx512_vnni." && false
fi
echo "TESTS-END \$?"
/bin/busybox sleep 1 # for what the serial line has not sent yet
/bin/busybox poweroff -f
EOF
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio --quiet -o -H newc >"$work/iso/initrd")

# What the kernel must not use, for Bochs 2.7 gets it wrong: PKU and the compact forms of XSAVE (sizes that do not add up,
# whereupon the kernel turns AVX off) and fast string moves (the kernel overwrites its own code with rubbish as it patches
# it). APERF and MPERF are only missing registers, read at each tick.
cat >"$work/iso/isolinux.cfg" <<'EOF'
default tests
label tests
  kernel /kernel
  append initrd=/initrd console=ttyS0 loglevel=1 nokaslr mitigations=off tsc=reliable clearcpuid=pku,xsaves,xsavec,fsrm,erms,aperfmperf panic=-1 reboot=t
EOF
cp "$work"/debian/boot/vmlinuz-* "$work/iso/kernel"
cp "$work/debian/usr/lib/ISOLINUX/isolinux.bin" "$work/debian/usr/lib/syslinux/modules/bios/ldlinux.c32" "$work/iso/"
xorriso -as mkisofs -quiet -o "$work/boot.iso" -b isolinux.bin -c boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$work/iso"

# Debian's Bochs has but one screen that needs no terminal, and offers it to the network: hence the namespace without one
# below. It also stops in its debugger, where 'c' continues and 'q' quits after an interrupt.
cat >"$work/bochsrc" <<EOF
cpu: model=corei7_icelake_u, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
plugin_ctrl: speaker=0
display_library: rfb, options="timeout=0"
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
clock: sync=none
log: $work/log
panic: action=fatal
error: action=ignore
info: action=ignore
EOF
printf 'c\nq\n' >"$work/debugger"
alone=()
if unshare -rn true 2>/dev/null; then alone=(unshare -rn); fi
echo "Running $(basename "$tests") in Bochs." >&2
: >"$work/serial"
tail --pid=$$ -f "$work/serial" &
# Bochs exits with 1 even when the machine is switched off, so the status is read from the serial line.
timeout --foreground "${LIMIT:-1800}" "${alone[@]}" bochs -q -f "$work/bochsrc" -rc "$work/debugger" \
    </dev/null >"$work/out" 2>&1 || true
sleep 2 # until tail has shown the last line

status=$(tr -d '\r' <"$work/serial" | sed -n 's/^TESTS-END \([0-9]*\)$/\1/p')
if [[ -z "$status" ]]; then
    echo "The tests did not end: the machine crashed, or LIMIT is too small." >&2
    tail -n 5 "$work/out" "$work/log" >&2
    exit 1
fi
exit "$status"
