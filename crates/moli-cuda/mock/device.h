// The state of the mock and what is done with it: devices, memory, streams, modules. driver.cpp wraps it as the driver API.
#pragma once
#include "mock.h"

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#pragma GCC visibility push(hidden)

using CUdeviceptr = unsigned long long;
using Work = std::function<CUresult()>;

#define TRY(call)                                        \
    do {                                                 \
        if (const CUresult tried = (call)) return tried; \
    } while (false)

struct Device;
// What streams that are being captured gather.
struct Capture {
    std::vector<Work> work;
    int mode = 0; // 0 global, 1 thread local, 2 relaxed
    bool broken = false;
    const void* thread = nullptr;
};
struct Stream {
    Device* device;
    bool blocking; // waits for the default stream, and it for this one
    std::deque<Work> queue;
    uint64_t submitted = 0, done = 0;
    std::shared_ptr<Capture> capture;
    bool origin = false; // of the capture
};
struct Event {
    unsigned flags;
    Stream* stream = nullptr; // on which it was last recorded
    uint64_t at = 0;          // how much that stream had to do by then
    std::shared_ptr<Capture> capture;
    std::chrono::steady_clock::time_point time;
    bool passed = false;
};
struct Graph {
    std::vector<Work> work;
};
struct Executable : Graph {};
struct Function {
    const MoliKernel* kernel = nullptr;
    unsigned shared = 0, max_threads = 1024, max_dynamic = 0; // bytes of static shared memory; limits
};
struct Module {
    std::string text;
    std::map<std::string, Function*> functions;
};
// A device and its primary context, which have the same life here.
struct Device {
    int retained = 0;
    size_t used = 0;
    CUresult lost = CUDA_SUCCESS; // what a kernel did
    Stream stream{this, true};    // the default one
};
struct Allocation {
    char* map;
    size_t map_size, size;
    Device* device; // null: memory of the host
};
struct Knobs {
    long devices, capability, driver, init, fail_allocation, fail_launch;
    size_t memory;
    double ptx;
    bool reverse, lazy, trace;
};

extern std::recursive_mutex everything; // one call at a time
extern Knobs knobs;
extern std::deque<Device> devices;
extern std::map<uintptr_t, Allocation> allocations;
extern thread_local Device* current;
extern thread_local char this_thread; // whose address tells threads apart

// Handles that are valid.
template <class T> std::set<T*> live;
template <class T> T* make(T* object) { return live<T>.insert(object), object; }
template <class T> T* known(void* handle) {
    return live<T>.count(static_cast<T*>(handle)) ? static_cast<T*>(handle) : nullptr;
}
template <class T> CUresult destroy(void* handle) {
    T* object = known<T>(handle);
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    live<T>.erase(object);
    delete object;
    return CUDA_SUCCESS;
}

CUresult complain(CUresult code, const std::string& text);

// ---- Memory

// The allocation that all these bytes are in, or null.
Allocation* find(CUdeviceptr address, size_t size);
// Memory of a device, or of the host if that is null.
CUresult allocate(CUdeviceptr* address, size_t size, Device* device);
CUresult release(CUdeviceptr address, bool device);
// Ends a context: its work is done, its memory and streams are given back.
void reset(Device* device);
CUresult copy(Stream* stream, CUdeviceptr to, CUdeviceptr from, size_t size, bool to_device, bool from_device, bool wait);
// `count` elements of `width` bytes.
CUresult fill(Stream* stream, CUdeviceptr to, uint32_t value, size_t width, size_t count, bool wait);

// ---- Streams

Stream* stream_of(void* handle);
// Does a stream's work as far as `until`.
CUresult finish(Stream* stream, uint64_t until);
CUresult finish_all(Device* device);
// Ends a stream, whose work is done.
void forget(Stream* stream);
// Adds work to a stream or to its capture, and does it unless it is to be lazy.
CUresult submit(Stream* stream, Work work);
// Work that waits until another stream has come to a point.
Work wait_for(Stream* other, uint64_t until);
CUresult synchronise(Stream* stream);
// An error, and the end of the capture, if one forbids this call.
CUresult not_while_capturing(const char* call);

// ---- Modules and launches

CUresult load(void** module, const char* image);
CUresult link(Function& function, const std::string& text, const std::string& name);
unsigned most_shared(); // bytes of shared memory that a block may have on request
CUresult launch(void* function, dim3 grid, dim3 block, unsigned shared, void* stream, void** arguments, void** extra);

#pragma GCC visibility pop
