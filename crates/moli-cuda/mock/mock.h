// What the parts of the mock know of each other: errors, how kernels run (exec.cpp), how an address is described (device.cpp).
#pragma once
#include "shim.h"
#include <string>

#define ERRORS(X)                                                                                            \
    X(CUDA_SUCCESS, 0, "no error")                                                                           \
    X(CUDA_ERROR_INVALID_VALUE, 1, "invalid argument")                                                       \
    X(CUDA_ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                          \
    X(CUDA_ERROR_NOT_INITIALIZED, 3, "initialization error")                                                 \
    X(CUDA_ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                                       \
    X(CUDA_ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                              \
    X(CUDA_ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                                       \
    X(CUDA_ERROR_INVALID_CONTEXT, 201, "invalid device context")                                             \
    X(CUDA_ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for execution on the device")         \
    X(CUDA_ERROR_INVALID_PTX, 218, "a PTX JIT compilation failed")                                           \
    X(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222, "the provided PTX was compiled with an unsupported toolchain.") \
    X(CUDA_ERROR_FILE_NOT_FOUND, 301, "file not found")                                                      \
    X(CUDA_ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                             \
    X(CUDA_ERROR_ILLEGAL_STATE, 401, "the operation cannot be performed in the present state")               \
    X(CUDA_ERROR_NOT_FOUND, 500, "named symbol not found")                                                   \
    X(CUDA_ERROR_NOT_READY, 600, "device not ready")                                                         \
    X(CUDA_ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                           \
    X(CUDA_ERROR_MISALIGNED_ADDRESS, 716, "misaligned address")                                              \
    X(CUDA_ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                                           \
    X(CUDA_ERROR_NOT_SUPPORTED, 801, "operation not supported")                                              \
    X(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803, "unsupported display driver / cuda driver combination")        \
    X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing")        \
    X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901, "operation failed due to a previous error during capture") \
    X(CUDA_ERROR_STREAM_CAPTURE_MERGE, 902, "operation would result in a merge of capture sequences")        \
    X(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, 903, "capture was not ended in the same stream as it began")      \
    X(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, 905, "dependency created on uncaptured work in another stream")   \
    X(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906, "the legacy stream would depend on a capturing one")          \
    X(CUDA_ERROR_CAPTURED_EVENT, 907, "operation not permitted on an event recorded in a capture")           \
    X(CUDA_ERROR_UNKNOWN, 999, "unknown error")
enum CUresult : int {
#define X(name, code, text) name = code,
    ERRORS(X)
#undef X
};

#pragma GCC visibility push(hidden)
// ---- exec.cpp

// The kernel of this name, or null.
const MoliKernel* find_kernel(const std::string& name);
// Runs all blocks of a launch, the last first if `reverse`. `shared`: bytes of dynamic shared memory.
CUresult run_kernel(const MoliKernel& kernel, void** arguments, dim3 grid, dim3 block, unsigned shared, bool reverse);
void install_fault_handlers();

// ---- device.cpp

// In words, what of the device's memory is at or near this address.
std::string describe_address(const void* address);
#pragma GCC visibility pop
