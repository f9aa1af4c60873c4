# What CI does.
check:
    bash .ci/run

# Kernels, prefill and decode; quote ratios, and only from one quiet run.
bench:
    cargo bench --workspace
