#!/usr/bin/env python3
"""Writes what the formats with codebooks are tested against, from the Python package gguf (0.19), and their grids.

    python3 -m pip install gguf==0.19.0
    python3 scripts/block-fixtures.py

writes crates/moli-kernels/src/quant/grids.bin (each entry of a grid in 16 bits, grid after grid) and
crates/moli-kernels/tests/fixtures/codebooks.bin: for each type random blocks and the values that the package makes of them,
in the form that tests/dequantize.rs describes. It also prints a checksum (FNV-1a) of each grid's values, which a test in
quant/grids.rs has.
"""

import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, quants

KERNELS = pathlib.Path(__file__).resolve().parent.parent / "crates/moli-kernels"
BLOCKS = 3
# Where the half-precision scale of a block lies, for the formats that have one in one piece.
SCALE_AT = {
    Type.IQ2_XXS: 0, Type.IQ2_XS: 0, Type.IQ2_S: 0, Type.IQ3_XXS: 0, Type.IQ3_S: 0, Type.IQ1_S: 0,
    Type.IQ4_NL: 0, Type.IQ4_XS: 0, Type.TQ1_0: 52, Type.TQ2_0: 64,
}
TYPES = [*SCALE_AT, Type.IQ1_M, Type.MXFP4, Type.NVFP4]
GRIDS = [quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ1_S, quants.IQ3_XXS, quants.IQ3_S]


def fnv(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return state


def random_blocks(ttype, rng):
    """Blocks of random bytes with finite scales, the last of them subnormal."""
    size = GGML_QUANT_SIZES[ttype][1]
    blocks = rng.integers(0, 256, (BLOCKS * (256 // GGML_QUANT_SIZES[ttype][0]), size), dtype=np.uint8)
    scales = rng.uniform(-2, 2, len(blocks)).astype(np.float16)
    scales[-1] = 3e-6
    if ttype in SCALE_AT:
        at = SCALE_AT[ttype]
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    elif ttype == Type.IQ1_M:
        for i in range(4):
            nibble = (scales.view(np.uint16) >> (4 * i) & 15).astype(np.uint8)
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | nibble << 4
    elif ttype == Type.MXFP4:
        # Every power of two at least nearly; those around the ends in any case.
        blocks[:6, 0] = [0, 1, 2, 127, 254, 255]
    elif ttype == Type.NVFP4:
        blocks[0, :4] = [0, 1, 0x7E, 0x7F]
        blocks[1, :4] = [0x08, 0x80, 0xFF, 0x07]
    return blocks


def main():
    rng = np.random.default_rng(1)
    fixture = b""
    for ttype in TYPES:
        blocks = random_blocks(ttype, rng)
        with np.errstate(over="ignore"):
            values = quants.dequantize(blocks.reshape(1, -1), ttype).astype("<f4")
        fixture += struct.pack("<III", ttype, blocks.size, values.size) + blocks.tobytes() + values.tobytes()
    (KERNELS / "tests/fixtures/codebooks.bin").write_bytes(fixture)
    (KERNELS / "src/quant/grids.bin").write_bytes(b"".join(bytes.fromhex(g.grid_hex.decode()) for g in GRIDS))
    for grid in GRIDS:
        grid.init_grid()
        print(grid.__name__, f"0x{fnv(grid.grid.astype(np.int8).tobytes()):016x}")


if __name__ == "__main__":
    main()
