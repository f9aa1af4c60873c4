#!/usr/bin/env python3
"""Compiles the CUDA kernels (crates/moli-cuda/kernels) to the PTX that is committed beside them (crates/moli-cuda/ptx).

    scripts/compile-kernels.py            # compiles all and writes what changed
    scripts/compile-kernels.py --check    # compiles all and fails if anything committed is not what comes out
    scripts/compile-kernels.py --ptxas    # also assembles them for each architecture, and prints registers and spills

The compiler is NVRTC 12.0, from PyPI (25 MB), which needs no GPU and no toolkit. It is that old on purpose: what it writes is PTX 8.0,
which every driver since that of CUDA 12.0 (525, and JetPack 6 on Jetson boards) takes. PTX for compute capability 8.0 runs on all that
came after it. `ptxas` comes from PyPI too, for --ptxas alone.
"""

import argparse
import ctypes
import glob
import os
import subprocess
import sys

NVRTC = "nvidia-cuda-nvrtc-cu12==12.0.140"
PTXAS = "nvidia-cuda-nvcc-cu12==12.9.86"
CAPABILITY = "80"
# NVRTC orders the address arithmetic of this kernel, the largest, by where its own data happens to lie: no two runs write the same.
UNSTABLE = "gemm_halves_min"
ARCHITECTURES = ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_120"]

root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
crate = os.path.join(root, "crates", "moli-cuda")
tools = os.environ.get("MOLI_CUDA_TOOLS", os.path.join(root, "target", "cuda-tools"))


def install(package, pattern):
    """The path of a file of a package, which is installed if it is not there."""
    # A folder for each: pip leaves out what is in a folder that is there already.
    folder = os.path.join(tools, package.partition("=")[0])
    found = glob.glob(os.path.join(folder, pattern))
    if not found:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]
        subprocess.run([*pip, "--no-deps", "--target", folder, package], check=True)
        found = glob.glob(os.path.join(folder, pattern))
    return found[0]


class Compiler:
    def __init__(self):
        library = install(NVRTC, "nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
        self.nvrtc = ctypes.CDLL(library)
        kernels = os.path.join(crate, "kernels")
        names = sorted(name for name in os.listdir(kernels) if name.endswith(".cuh"))
        self.headers = {name: open(os.path.join(kernels, name), "rb").read() for name in names}

    def ok(self, code, what):
        if code != 0:
            raise SystemExit(f"{what}: NVRTC error {code}")

    def compile(self, source, defines):
        """The PTX of a source file, without comments."""
        nvrtc, program = self.nvrtc, ctypes.c_void_p()
        text = open(os.path.join(crate, "kernels", source), "rb").read()
        count = len(self.headers)
        contents = (ctypes.c_char_p * count)(*self.headers.values())
        names = (ctypes.c_char_p * count)(*(name.encode() for name in self.headers))
        self.ok(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), count, contents, names), source)
        options = [f"--gpu-architecture=compute_{CAPABILITY}", "--std=c++17", *(f"--define-macro={define}" for define in defines)]
        options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = nvrtc.nvrtcCompileProgram(program, len(options), options)
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if log.value.strip():
            print(log.value.decode(), file=sys.stderr)
        self.ok(code, source)
        nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetPTX(program, ptx)
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        lines = (line.rstrip() for line in ptx.value.decode().splitlines())
        return "\n".join(line for line in lines if line and not line.startswith("//")) + "\n"


def stable(ptx):
    """What of a module is the same in every run."""
    head, start, rest = ptx.partition(f".visible .entry {UNSTABLE}(")
    return head + rest.partition("\n}\n")[2] if start else ptx


def fingerprint():
    """FNV-1a of all sources, as the crate's test computes it: so that a stale PTX fails without a compiler."""
    state = 0xCBF29CE484222325
    kernels = os.path.join(crate, "kernels")
    for name in sorted(os.listdir(kernels)):
        for byte in name.encode() + open(os.path.join(kernels, name), "rb").read():
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if what is committed differs")
    parser.add_argument("--ptxas", action="store_true", help="assemble for each architecture, print registers and spills")
    arguments = parser.parse_args()

    compiler, folder, stale = Compiler(), os.path.join(crate, "ptx"), []
    os.makedirs(folder, exist_ok=True)

    def committed(name):
        path = os.path.join(folder, name)
        return open(path).read() if os.path.exists(path) else None

    def put(name, text):
        old = committed(name)
        if old == text or arguments.check and old is not None and stable(old) == stable(text):
            return
        stale.append(name)
        if not arguments.check:
            open(os.path.join(folder, name), "w").write(text)

    lines = open(os.path.join(crate, "kernels", "modules.txt")).read().splitlines()
    modules = [line.split() for line in lines if line and not line.startswith("#")]
    for name, source, *defines in modules:
        ptx = compiler.compile(source, defines)
        put(f"{name}.ptx", ptx)
        if arguments.ptxas:
            ptxas = install(PTXAS, "nvidia/cuda_nvcc/bin/ptxas")
            path = os.path.join(tools, "module.ptx")
            open(path, "w").write(ptx)
            for architecture in ARCHITECTURES:
                command = [ptxas, "-v", f"-arch={architecture}", path, "-o", os.devnull]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
                if architecture == ARCHITECTURES[0]:
                    entry = ""
                    for line in said.splitlines():
                        if "Compiling entry" in line:
                            entry = line.split("'")[1]
                        elif "spill" in line or "registers" in line:
                            print(f"{name} {entry}: {line.split(':')[-1].strip()}")
    for name in sorted(os.listdir(folder)):
        if name.endswith(".ptx") and name[:-4] not in [module[0] for module in modules]:
            stale.append(name)
            if not arguments.check:
                os.remove(os.path.join(folder, name))
    put("fingerprint", fingerprint() + "\n")

    if arguments.check and stale:
        raise SystemExit(f"not what the sources compile to: {', '.join(stale)}; run scripts/compile-kernels.py")
    print(f"{len(modules)} modules, {len(stale)} changed" if stale else f"{len(modules)} modules, all current")


if __name__ == "__main__":
    main()
