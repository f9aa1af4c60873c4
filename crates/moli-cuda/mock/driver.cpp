// A libcuda.so.1 without a device: the part of the CUDA driver API that cudarc calls, and the project's own kernels compiled
// for this processor (exec.cpp). It is for tests: memory, launches, their order and the kernels' arithmetic, on any machine.
//
//   mock/build.sh FOLDER [FILE.cu ...]     makes FOLDER/libcuda.so.1 (all of ../kernels/*.cu unless files are named)
//   LD_LIBRARY_PATH=FOLDER moli ...
//
// What it notices, beyond results: an access out of an allocation (each ends at a page that can't be touched; what lies
// before it and up to 15 bytes behind are looked at when it is freed), memory or shared memory that was never written (all
// bytes are 0xFF: NaN, -1), a misaligned access, an index out of a shared array, threads that diverge at barriers, pointers
// that are not the device's, copies out of bounds, kernels whose PTX is not that of the sources, what a capture forbids.
// Each is said in one line on stderr. As with a device, a context is lost after a kernel's fault, until its last release.
//
// Work is done at once, in the order of the calls, unless MOLI_MOCK_LAZY is set. Variables, read by each cuInit:
//   MOLI_MOCK_DEVICES=1            how many devices; 0: none, and cuInit says so
//   MOLI_MOCK_MEMORY=4294967296    bytes of each
//   MOLI_MOCK_CAPABILITY=80        compute capability; PTX for a newer one is refused
//   MOLI_MOCK_DRIVER=12000         what cuDriverGetVersion answers
//   MOLI_MOCK_PTX=8.0              the newest PTX ISA version that is accepted (any)
//   MOLI_MOCK_INIT=999             an error that cuInit returns
//   MOLI_MOCK_FAIL_ALLOCATION=N    the N-th allocation of device memory from here on fails
//   MOLI_MOCK_FAIL_LAUNCH=N        the N-th launch of a kernel from here on fails, and with it the context
//   MOLI_MOCK_REVERSE=1            last block first, last thread first: what leans on an order shows
//   MOLI_MOCK_LAZY=1               streams do nothing until something waits for them: what forgets to wait shows
//   MOLI_MOCK_TRACE=1              each launch on stderr, with its time
//
// Not here: parallelism (one thread at a time, for the whole process), the device's timing, its fast functions' last bits,
// its fused products (unless written as fma), memory pools, textures, globals of modules.
#include "mock.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <sys/mman.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) CUresult

namespace {

using CUdeviceptr = unsigned long long;
using Work = std::function<CUresult()>;

std::recursive_mutex everything; // one call at a time

struct Device;
// What a stream that is being captured gathers; other streams may join.
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
struct Module;
struct Function {
    const MoliKernel* kernel;
    Module* module;
    unsigned shared = 0, max_threads = 1024, max_dynamic = 0; // bytes of static shared memory; limits
};
struct Module {
    std::string text;
    std::map<std::string, Function> functions;
};
struct Device {
    int retained = 0;
    size_t used = 0;
    CUresult lost = CUDA_SUCCESS; // what a kernel did
    Stream stream{this, true};    // the default one
};
struct Allocation {
    char* map;
    size_t map_size, size;
    Device* device; // null: host memory
};

struct Knobs {
    long devices, capability, driver, init, fail_allocation, fail_launch;
    size_t memory;
    double ptx;
    bool reverse, lazy, trace;
} knobs;
bool initialised;
std::deque<Device> devices;
std::map<uintptr_t, Allocation> allocations;
template <class T> std::set<T*> live; // handles that are valid
thread_local Device* current;
thread_local char this_thread;

CUresult complain(CUresult code, const std::string& text) {
    fprintf(stderr, "mock CUDA: %s\n", text.c_str());
    return code;
}

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

// What each call begins with.
#define ENTER                                             \
    std::lock_guard<std::recursive_mutex> lock(everything); \
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED
#define ENTER_CONTEXT                                \
    ENTER;                                           \
    if (!current) return CUDA_ERROR_INVALID_CONTEXT; \
    if (current->lost) return current->lost
#define TRY(call)                                         \
    do {                                                  \
        if (const CUresult tried = (call)) return tried; \
    } while (false)
#define NOT_NULL(pointer) \
    if (!(pointer)) return CUDA_ERROR_INVALID_VALUE

// ---- Memory

constexpr size_t PAGE = 4096, ALIGNMENT = 16;
constexpr unsigned char FRESH = 0xFF;

Allocation* find(CUdeviceptr address, size_t size) {
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return nullptr;
    auto& [start, allocation] = *--next;
    const size_t offset = address - start;
    return offset <= allocation.size && size <= allocation.size - offset ? &allocation : nullptr;
}

CUresult allocate(CUdeviceptr* address, size_t size, Device* device) {
    NOT_NULL(address);
    *address = 0;
    if (size == 0) return CUDA_ERROR_INVALID_VALUE;
    if (device) {
        if (knobs.fail_allocation > 0 && --knobs.fail_allocation == 0) return CUDA_ERROR_OUT_OF_MEMORY;
        if (size > knobs.memory - device->used) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const size_t pages = (size + PAGE - 1) / PAGE * PAGE, map_size = pages + 2 * PAGE;
    void* map = mmap(nullptr, map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    char* first = static_cast<char*>(map) + PAGE;
    mprotect(first, pages, PROT_READ | PROT_WRITE);
    memset(first, FRESH, pages);
    *address = reinterpret_cast<uintptr_t>(first + (pages - size) / ALIGNMENT * ALIGNMENT);
    allocations[*address] = {static_cast<char*>(map), map_size, size, device};
    if (device) device->used += size;
    return CUDA_SUCCESS;
}

CUresult release(CUdeviceptr address, bool device) {
    const auto found = allocations.find(address);
    if (found == allocations.end() || (found->second.device != nullptr) != device) {
        return complain(CUDA_ERROR_INVALID_VALUE, "an address was freed that isn't allocated");
    }
    const Allocation allocation = found->second;
    const auto fresh = [](const char* from, const char* to) {
        return std::all_of(from, to, [](char c) { return (unsigned char)c == FRESH; });
    };
    const char* start = reinterpret_cast<char*>(address);
    const bool intact = fresh(allocation.map + PAGE, start) &&
                        fresh(start + allocation.size, allocation.map + allocation.map_size - PAGE);
    munmap(allocation.map, allocation.map_size);
    allocations.erase(found);
    if (device) allocation.device->used -= allocation.size;
    if (intact) return CUDA_SUCCESS;
    return complain(CUDA_ERROR_ILLEGAL_ADDRESS,
                    "bytes before or behind an allocation of " + std::to_string(allocation.size) + " were written");
}

// Device memory of this size, or memory of the host that the device sees.
CUresult check(CUdeviceptr address, size_t size, const char* what) {
    if (size == 0 || find(address, size)) return CUDA_SUCCESS;
    std::ostringstream text;
    text << what << " of " << size << " bytes at 0x" << std::hex << address << ", "
         << describe_address(reinterpret_cast<void*>(address));
    return complain(CUDA_ERROR_INVALID_VALUE, text.str());
}

// ---- Streams: work is queued, and done at once unless it is lazy

Stream* stream_of(void* handle) {
    return reinterpret_cast<uintptr_t>(handle) <= 2 ? &current->stream : known<Stream>(handle);
}

// Does a stream's work as far as `until`.
CUresult finish(Stream* stream, uint64_t until) {
    while (stream->done < until) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        const CUresult code = stream->device->lost ? stream->device->lost : work();
        if (!code) continue;
        if (code == CUDA_ERROR_ILLEGAL_ADDRESS || code == CUDA_ERROR_LAUNCH_FAILED || code == CUDA_ERROR_MISALIGNED_ADDRESS) {
            stream->device->lost = code;
        }
        return code;
    }
    return CUDA_SUCCESS;
}

CUresult finish_all(Device* device) {
    for (Stream* stream : live<Stream>) {
        if (stream->device == device) TRY(finish(stream, stream->submitted));
    }
    return finish(&device->stream, device->stream.submitted);
}

void enqueue(Stream* stream, Work work) {
    stream->queue.push_back(std::move(work));
    stream->submitted++;
}

CUresult submit(Stream* stream, Work work) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    Stream* standard = &stream->device->stream;
    std::vector<Stream*> before;
    if (stream == standard) before.assign(live<Stream>.begin(), live<Stream>.end());
    else before.push_back(standard);
    for (Stream* other : before) {
        if (other->device != stream->device || !other->blocking || !stream->blocking) continue;
        if (other->capture && !other->capture->broken) {
            other->capture->broken = true;
            return complain(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the default stream would wait for one being captured");
        }
        enqueue(stream, [other, until = other->submitted] {
            return live<Stream>.count(other) || other == &other->device->stream ? finish(other, until) : CUDA_SUCCESS;
        });
    }
    enqueue(stream, std::move(work));
    return knobs.lazy ? CUDA_SUCCESS : finish(stream, stream->submitted);
}

// Calls that wait or allocate end a capture, unless it is relaxed.
CUresult not_while_capturing(const char* call) {
    for (Stream* stream : live<Stream>) {
        Capture* capture = stream->capture.get();
        if (!capture || capture->mode == 2 || (capture->mode == 1 && capture->thread != &this_thread)) continue;
        capture->broken = true;
        return complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, std::string(call) + " while a stream is being captured");
    }
    return CUDA_SUCCESS;
}

CUresult synchronise(Stream* stream) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) {
        stream->capture->broken = true;
        return complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream that is being captured can't be waited for");
    }
    if (stream == &stream->device->stream) TRY(submit(stream, [] { return CUDA_SUCCESS; })); // for all that block
    return finish(stream, stream->submitted);
}

// A copy. Host memory that is not pinned is read before the call returns, and written before it returns, too.
CUresult copy(Stream* stream, CUdeviceptr to, CUdeviceptr from, size_t size, bool to_device, bool from_device, bool wait) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (wait) TRY(not_while_capturing("a copy that waits"));
    if (to_device) TRY(check(to, size, "a copy to device memory"));
    if (from_device) TRY(check(from, size, "a copy from device memory"));
    if (size == 0) return CUDA_SUCCESS;
    std::shared_ptr<std::string> staged;
    if (!stream->capture && !from_device && !find(from, size)) {
        staged = std::make_shared<std::string>(reinterpret_cast<char*>(from), size);
    }
    TRY(submit(stream, [=] {
        if (to_device) TRY(check(to, size, "a copy to device memory"));
        if (from_device) TRY(check(from, size, "a copy from device memory"));
        memmove(reinterpret_cast<void*>(to), staged ? staged->data() : reinterpret_cast<void*>(from), size);
        return CUDA_SUCCESS;
    }));
    const bool pageable = !stream->capture && !to_device && !find(to, size);
    return wait || pageable ? finish(stream, stream->submitted) : CUDA_SUCCESS;
}

CUresult fill(Stream* stream, CUdeviceptr to, uint32_t value, size_t width, size_t count, bool wait) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (wait) TRY(not_while_capturing("a memset that waits"));
    TRY(check(to, width * count, "a memset"));
    TRY(submit(stream, [=] {
        TRY(check(to, width * count, "a memset"));
        for (size_t i = 0; i < count && width > 1; i++) memcpy(reinterpret_cast<char*>(to) + i * width, &value, width);
        if (width == 1) memset(reinterpret_cast<void*>(to), value, count);
        return CUDA_SUCCESS;
    }));
    return wait ? finish(stream, stream->submitted) : CUDA_SUCCESS;
}

// ---- PTX: as much of it as ties the text to the sources

// The part of a text between the first `open` behind `from` and what closes it.
std::string bracketed(const std::string& text, size_t from, char open, char close) {
    const size_t start = text.find(open, from);
    if (start == std::string::npos) return "";
    size_t end = start + 1;
    for (int depth = 1; end < text.size() && depth; end++) depth += (text[end] == open) - (text[end] == close);
    return text.substr(start + 1, end - start - 2);
}

// Bytes of a declaration such as `.param .align 4 .b8 name[12]` or `.shared .u32 name`.
size_t declared_size(const std::string& declaration) {
    static const std::map<std::string, size_t> sizes = {
        {".b8", 1},  {".u8", 1},  {".s8", 1},  {".b16", 2}, {".u16", 2}, {".s16", 2}, {".f16", 2}, {".pred", 1},
        {".b32", 4}, {".u32", 4}, {".s32", 4}, {".f32", 4}, {".b64", 8}, {".u64", 8}, {".s64", 8}, {".f64", 8}};
    size_t size = 0;
    std::istringstream words(declaration);
    for (std::string word; words >> word;) {
        if (!size && sizes.count(word)) size = sizes.at(word);
    }
    for (size_t at = declaration.find('['); at != std::string::npos; at = declaration.find('[', at + 1)) {
        size *= strtoul(declaration.c_str() + at + 1, nullptr, 10);
    }
    return size;
}

std::vector<std::string> declarations(const std::string& text, const std::string& kind, const char* ends) {
    std::vector<std::string> found;
    for (size_t at = text.find(kind); at != std::string::npos; at = text.find(kind, at + 1)) {
        found.push_back(text.substr(at, text.find_first_of(ends, at) - at));
    }
    return found;
}

// The function of this name, if the text's parameters are those of the kernel that stands in for it.
CUresult link(Function& function, const std::string& text, const std::string& name) {
    const auto missing = [&](const std::string& why) {
        return complain(CUDA_ERROR_NOT_FOUND, "kernel " + name + ": " + why);
    };
    size_t entry = text.find(".entry " + name + "(");
    if (entry == std::string::npos) return missing("the PTX has no such entry");
    const MoliKernel* kernel = function.kernel = find_kernel(name);
    if (!kernel) return missing("the sources have no such kernel");
    const auto parameters = declarations(bracketed(text, entry, '(', ')'), ".param", ",");
    if (parameters.size() != kernel->count) {
        return missing("the PTX has " + std::to_string(parameters.size()) + " parameters, the sources " +
                       std::to_string(kernel->count));
    }
    for (size_t i = 0; i < kernel->count; i++) {
        if (declared_size(parameters[i]) == kernel->parameters[i].size) continue;
        return missing("parameter " + std::to_string(i) + " has " + std::to_string(declared_size(parameters[i])) +
                       " bytes in the PTX, " + std::to_string(kernel->parameters[i].size) + " in the sources");
    }
    for (const std::string& shared : declarations(bracketed(text, entry, '{', '}'), ".shared .", ";")) {
        function.shared += declared_size(shared);
    }
    const std::string head = text.substr(entry, text.find('{', entry) - entry);
    const size_t bound = head.find(".maxntid");
    if (bound != std::string::npos) {
        function.max_threads = 1;
        std::istringstream numbers(head.substr(bound + 8));
        for (unsigned n; numbers >> n; numbers.ignore(1)) {
            function.max_threads *= n;
            if (numbers.peek() != ',') break;
        }
    }
    return CUDA_SUCCESS;
}

CUresult load(void** module, const char* image) {
    NOT_NULL(module && image);
    const std::string text = image;
    const size_t version = text.find(".version "), target = text.find(".target sm_");
    if (version == std::string::npos || target == std::string::npos) {
        return complain(CUDA_ERROR_INVALID_IMAGE, "a module that isn't PTX");
    }
    const auto number = [&](size_t at, size_t skip) { return atof(text.c_str() + at + skip); };
    if (knobs.ptx && number(version, 9) > knobs.ptx) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    if (number(target, 11) > knobs.capability) return CUDA_ERROR_INVALID_PTX;
    Module* made = make(new Module);
    made->text = text;
    *module = made;
    return CUDA_SUCCESS;
}

// ---- Launches

unsigned most_shared() { // bytes that a block may have on request
    switch (knobs.capability) {
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: return 99 << 10;
    default: return knobs.capability >= 90 ? 227 << 10 : 96 << 10;
    }
}

// A kernel's arguments, kept for when it runs.
struct Launch {
    Function* function;
    dim3 grid, block;
    unsigned shared;
    std::vector<std::vector<unsigned char>> values;

    CUresult operator()() {
        const MoliKernel& kernel = *function->kernel;
        if (knobs.fail_launch > 0 && --knobs.fail_launch == 0) return CUDA_ERROR_LAUNCH_FAILED;
        std::vector<void*> pointers;
        for (size_t i = 0; i < values.size(); i++) {
            pointers.push_back(values[i].data());
            CUdeviceptr address = 0;
            if (kernel.parameters[i].pointer) memcpy(&address, values[i].data(), sizeof address);
            if (!address || find(address, 0)) continue;
            return complain(CUDA_ERROR_ILLEGAL_ADDRESS,
                            std::string("kernel ") + kernel.name + ": parameter " + std::to_string(i) + " is " +
                                describe_address(reinterpret_cast<void*>(address)));
        }
        const auto start = std::chrono::steady_clock::now();
        const CUresult code = run_kernel(kernel, pointers.data(), grid, block, shared, knobs.reverse);
        if (knobs.trace) {
            const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
            fprintf(stderr, "mock CUDA: %s<<<(%u, %u, %u), (%u, %u, %u), %u>>> %.3f ms\n", kernel.name, grid.x, grid.y,
                    grid.z, block.x, block.y, block.z, shared, took.count());
        }
        return code;
    }
};

CUresult launch(void* handle, dim3 grid, dim3 block, unsigned shared, void* on, void** arguments, void** extra) {
    Function* function = static_cast<Function*>(handle);
    Stream* stream = stream_of(on);
    if (!stream || !function || !known<Module>(function->module)) return CUDA_ERROR_INVALID_HANDLE;
    const MoliKernel& kernel = *function->kernel;
    const auto refuse = [&](CUresult code, const char* why) {
        return complain(code, std::string("launch of ") + kernel.name + ": " + why);
    };
    if (extra) return refuse(CUDA_ERROR_NOT_SUPPORTED, "packed arguments");
    if (kernel.count && !arguments) return refuse(CUDA_ERROR_INVALID_VALUE, "no arguments");
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (!threads || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > function->max_threads) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "no threads in a block, or more than it may have");
    }
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "no blocks, or more than a grid may have");
    }
    if (function->shared + shared > std::max(48u << 10, function->shared + function->max_dynamic)) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "more shared memory than it asked for (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_...)");
    }
    Launch work{function, grid, block, shared, {}};
    for (size_t i = 0; i < kernel.count; i++) {
        const unsigned char* value = static_cast<unsigned char*>(arguments[i]);
        work.values.emplace_back(value, value + kernel.parameters[i].size);
    }
    return submit(stream, std::move(work));
}

long knob(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value && *value ? strtol(value, nullptr, 10) : otherwise;
}

} // namespace

std::string describe_address(const void* at) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(at);
    if (address < PAGE) return "a null pointer, or no address at all";
    for (auto& [start, allocation] : allocations) {
        const uintptr_t map = reinterpret_cast<uintptr_t>(allocation.map);
        if (address < map || address >= map + allocation.map_size) continue;
        const std::string of = " an allocation of " + std::to_string(allocation.size) + " bytes";
        if (address < start) return std::to_string(start - address) + " bytes before" + of;
        if (address >= start + allocation.size) return std::to_string(address - start - allocation.size) + " bytes behind" + of;
        return std::to_string(address - start) + " bytes into" + of;
    }
    return "not memory of the device";
}

// ---- The API: start, devices, contexts

API cuInit(unsigned) {
    std::lock_guard<std::recursive_mutex> lock(everything);
    const char* ptx = getenv("MOLI_MOCK_PTX");
    knobs = {knob("MOLI_MOCK_DEVICES", 1),   knob("MOLI_MOCK_CAPABILITY", 80),
             knob("MOLI_MOCK_DRIVER", 12000), knob("MOLI_MOCK_INIT", 0),
             knob("MOLI_MOCK_FAIL_ALLOCATION", 0), knob("MOLI_MOCK_FAIL_LAUNCH", 0),
             (size_t)knob("MOLI_MOCK_MEMORY", 4l << 30), ptx ? atof(ptx) : 0,
             knob("MOLI_MOCK_REVERSE", 0) != 0, knob("MOLI_MOCK_LAZY", 0) != 0, knob("MOLI_MOCK_TRACE", 0) != 0};
    if (knobs.init) return static_cast<CUresult>(knobs.init);
    if (knobs.devices < 1) return CUDA_ERROR_NO_DEVICE;
    while ((long)devices.size() < knobs.devices) devices.emplace_back();
    install_fault_handlers();
    initialised = true;
    return CUDA_SUCCESS;
}
API cuDriverGetVersion(int* version) {
    NOT_NULL(version);
    *version = knob("MOLI_MOCK_DRIVER", 12000);
    return CUDA_SUCCESS;
}
API cuDeviceGetCount(int* count) {
    ENTER;
    NOT_NULL(count);
    *count = knobs.devices;
    return CUDA_SUCCESS;
}
#define VALID_DEVICE(device) \
    if (device < 0 || device >= knobs.devices) return CUDA_ERROR_INVALID_DEVICE
API cuDeviceGet(int* device, int ordinal) {
    ENTER;
    NOT_NULL(device);
    VALID_DEVICE(ordinal);
    *device = ordinal;
    return CUDA_SUCCESS;
}
API cuDeviceGetName(char* name, int size, int device) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(name && size > 0);
    snprintf(name, size, "Mock of a CUDA device");
    return CUDA_SUCCESS;
}
API cuDeviceGetUuid(char uuid[16], int device) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(uuid);
    memset(uuid, 0, 16);
    memcpy(uuid, "moli mock", 9);
    uuid[15] = device;
    return CUDA_SUCCESS;
}
API cuDeviceGetUuid_v2(char uuid[16], int device) { return cuDeviceGetUuid(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int device) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(bytes);
    *bytes = knobs.memory;
    return CUDA_SUCCESS;
}
API cuDeviceComputeCapability(int* major, int* minor, int device) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(major && minor);
    *major = knobs.capability / 10, *minor = knobs.capability % 10;
    return CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int device) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(value);
    const std::map<int, int> values = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},                           // threads of a block
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},                            // blocks of a grid
        {8, 48 << 10}, {97, (int)most_shared()}, {81, (int)most_shared() + 1024}, {111, 1024}, // shared memory
        {9, 65536}, {10, 32}, {12, 65536}, {82, 65536},                     // constants, warp, registers
        {13, 1000000}, {36, 1000000}, {37, 64},                             // kHz, kHz, bits: of the processor and memory
        {16, 4}, {39, 2048}, {106, 32}, {38, 4 << 20},                      // multiprocessors, what each holds, cache
        {19, 1}, {31, 1}, {33, 0}, {34, device}, {40, 1}, {41, 1}, {78, 1}, {83, 0}, {95, 0}, {115, 1},
        {75, (int)knobs.capability / 10}, {76, (int)knobs.capability % 10}};
    const auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRetain(void** context, int device) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(context);
    devices[device].retained++;
    *context = &devices[device];
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxReset_v2(int device) {
    ENTER;
    VALID_DEVICE(device);
    finish_all(&devices[device]);
    devices[device].lost = CUDA_SUCCESS;
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER;
    VALID_DEVICE(device);
    if (devices[device].retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    return --devices[device].retained ? CUDA_SUCCESS : cuDevicePrimaryCtxReset_v2(device);
}
API cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(flags && active);
    *flags = 0, *active = devices[device].retained > 0;
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxSetFlags_v2(int device, unsigned) {
    ENTER;
    VALID_DEVICE(device);
    return CUDA_SUCCESS;
}
API cuCtxSetCurrent(void* context) {
    ENTER;
    for (Device& device : devices) {
        if (context == &device && !device.retained) return CUDA_ERROR_INVALID_CONTEXT;
    }
    current = static_cast<Device*>(context);
    return CUDA_SUCCESS;
}
API cuCtxGetCurrent(void** context) {
    ENTER;
    NOT_NULL(context);
    *context = current && current->retained ? current : nullptr;
    return CUDA_SUCCESS;
}
API cuCtxGetDevice(int* device) {
    ENTER_CONTEXT;
    NOT_NULL(device);
    for (size_t i = 0; i < devices.size(); i++) {
        if (current == &devices[i]) *device = i;
    }
    return CUDA_SUCCESS;
}
API cuCtxSynchronize() {
    ENTER_CONTEXT;
    TRY(not_while_capturing("cuCtxSynchronize"));
    return finish_all(current);
}
API cuCtxGetApiVersion(void*, unsigned* version) {
    ENTER_CONTEXT;
    NOT_NULL(version);
    *version = knobs.driver;
    return CUDA_SUCCESS;
}
API cuCtxSetFlags(unsigned) {
    ENTER_CONTEXT;
    return CUDA_SUCCESS;
}
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER_CONTEXT;
    if (least) *least = 0;
    if (greatest) *greatest = 0;
    return CUDA_SUCCESS;
}

// ---- Memory

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER_CONTEXT;
    NOT_NULL(free && total);
    *free = knobs.memory - current->used, *total = knobs.memory;
    return CUDA_SUCCESS;
}
API cuMemAlloc_v2(CUdeviceptr* address, size_t size) {
    ENTER_CONTEXT;
    TRY(not_while_capturing("cuMemAlloc"));
    return allocate(address, size, current);
}
API cuMemFree_v2(CUdeviceptr address) {
    ENTER_CONTEXT;
    if (!address) return CUDA_SUCCESS;
    TRY(not_while_capturing("cuMemFree"));
    TRY(finish_all(current)); // whatever uses it
    return release(address, true);
}
API cuMemAllocAsync(CUdeviceptr* address, size_t size, void* on) {
    ENTER_CONTEXT;
    Stream* stream = stream_of(on);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return complain(CUDA_ERROR_NOT_SUPPORTED, "the mock can't capture an allocation");
    return allocate(address, size, stream->device);
}
API cuMemFreeAsync(CUdeviceptr address, void* on) {
    ENTER_CONTEXT;
    Stream* stream = stream_of(on);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return complain(CUDA_ERROR_NOT_SUPPORTED, "the mock can't capture an allocation's end");
    if (!address) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, [=] { return release(address, true); });
}
API cuMemHostAlloc(void** pointer, size_t size, unsigned) {
    ENTER_CONTEXT;
    NOT_NULL(pointer);
    CUdeviceptr address = 0;
    TRY(allocate(&address, size, nullptr));
    *pointer = reinterpret_cast<void*>(address);
    return CUDA_SUCCESS;
}
API cuMemAllocHost_v2(void** pointer, size_t size) { return cuMemHostAlloc(pointer, size, 0); }
API cuMemFreeHost(void* pointer) {
    ENTER_CONTEXT;
    TRY(finish_all(current));
    return release(reinterpret_cast<CUdeviceptr>(pointer), false);
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* pointer, unsigned) {
    ENTER_CONTEXT;
    NOT_NULL(address);
    *address = reinterpret_cast<CUdeviceptr>(pointer);
    return find(*address, 0) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
API cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr address) {
    ENTER_CONTEXT;
    Allocation* found = find(address, 1);
    if (!found) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = std::prev(allocations.upper_bound(address))->first;
    if (size) *size = found->size;
    return CUDA_SUCCESS;
}

#define STREAM stream_of(stream)
#define DEFAULT (&current->stream)
#define HOST(pointer) reinterpret_cast<CUdeviceptr>(pointer)
// Each copy in two forms: one that waits, one that is ordered by a stream.
#define COPIES(wait_name, stream_name, TO, FROM, to_address, from_address, to_device, from_device)    \
    API wait_name(TO to, FROM from, size_t size) {                                                      \
        ENTER_CONTEXT;                                                                                  \
        return copy(DEFAULT, to_address, from_address, size, to_device, from_device, true);             \
    }                                                                                                   \
    API stream_name(TO to, FROM from, size_t size, void* stream) {                                      \
        ENTER_CONTEXT;                                                                                  \
        return copy(STREAM, to_address, from_address, size, to_device, from_device, false);             \
    }
COPIES(cuMemcpyHtoD_v2, cuMemcpyHtoDAsync_v2, CUdeviceptr, const void*, to, HOST(from), true, false)
COPIES(cuMemcpyDtoH_v2, cuMemcpyDtoHAsync_v2, void*, CUdeviceptr, HOST(to), from, false, true)
COPIES(cuMemcpyDtoD_v2, cuMemcpyDtoDAsync_v2, CUdeviceptr, CUdeviceptr, to, from, true, true)
API cuMemcpyPeerAsync(CUdeviceptr to, void*, CUdeviceptr from, void*, size_t size, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, size, stream);
}
#define FILLS(wait_name, stream_name, T)                                  \
    API wait_name(CUdeviceptr to, T value, size_t count) {                \
        ENTER_CONTEXT;                                                    \
        return fill(DEFAULT, to, value, sizeof(T), count, true);          \
    }                                                                     \
    API stream_name(CUdeviceptr to, T value, size_t count, void* stream) { \
        ENTER_CONTEXT;                                                    \
        return fill(STREAM, to, value, sizeof(T), count, false);          \
    }
FILLS(cuMemsetD8_v2, cuMemsetD8Async, uint8_t)
FILLS(cuMemsetD16_v2, cuMemsetD16Async, uint16_t)
FILLS(cuMemsetD32_v2, cuMemsetD32Async, uint32_t)

// ---- Modules and launches

API cuModuleLoadData(void** module, const void* image) {
    ENTER_CONTEXT;
    return load(module, static_cast<const char*>(image));
}
API cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) { return cuModuleLoadData(module, image); }
API cuModuleLoad(void** module, const char* path) {
    ENTER_CONTEXT;
    NOT_NULL(path);
    std::ifstream file(path);
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    std::ostringstream text;
    text << file.rdbuf();
    return load(module, text.str().c_str());
}
API cuModuleUnload(void* module) {
    ENTER_CONTEXT;
    TRY(finish_all(current));
    return destroy<Module>(module);
}
API cuModuleGetFunction(void** function, void* handle, const char* name) {
    ENTER_CONTEXT;
    NOT_NULL(function && name);
    Module* module = known<Module>(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (!module->functions.count(name)) {
        Function linked{nullptr, module};
        TRY(link(linked, module->text, name));
        linked.max_dynamic = (48 << 10) - std::min(linked.shared, 48u << 10);
        module->functions[name] = linked;
    }
    *function = &module->functions.at(name);
    return CUDA_SUCCESS;
}
API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, void*, const char*) { return CUDA_ERROR_NOT_FOUND; }
API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    ENTER_CONTEXT;
    NOT_NULL(value && handle);
    const Function* function = static_cast<Function*>(handle);
    *value = attribute == 0   ? function->max_threads
             : attribute == 1 ? function->shared
             : attribute == 4 ? 32 // registers
             : attribute == 5 || attribute == 6 ? knobs.capability
             : attribute == 8 ? function->max_dynamic
                              : 0;
    return CUDA_SUCCESS;
}
API cuFuncSetAttribute(void* handle, int attribute, int value) {
    ENTER_CONTEXT;
    NOT_NULL(handle);
    Function* function = static_cast<Function*>(handle);
    if (attribute == 9) return CUDA_SUCCESS; // how much of the cache is shared memory
    if (attribute != 8 || value < 0 || value + function->shared > most_shared()) return CUDA_ERROR_INVALID_VALUE;
    function->max_dynamic = value;
    return CUDA_SUCCESS;
}
API cuFuncSetCacheConfig(void*, int) { return CUDA_SUCCESS; }
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t dynamic) {
    ENTER_CONTEXT;
    NOT_NULL(blocks && handle && threads > 0);
    const size_t shared = static_cast<Function*>(handle)->shared + dynamic + 1024;
    *blocks = std::min({(size_t)32, (size_t)2048 / ((threads + 31) / 32 * 32), (most_shared() + 1024) / shared});
    return CUDA_SUCCESS;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
    ENTER_CONTEXT;
    return launch(function, {gx, gy, gz}, {bx, by, bz}, shared, stream, arguments, extra);
}
API cuLaunchHostFunc(void* stream, void (*call)(void*), void* data) {
    ENTER_CONTEXT;
    return submit(STREAM, [=] { return call(data), CUDA_SUCCESS; });
}

// ---- Streams and events

API cuStreamCreate(void** stream, unsigned flags) {
    ENTER_CONTEXT;
    NOT_NULL(stream && flags <= 1);
    *stream = make(new Stream{current, flags == 0});
    return CUDA_SUCCESS;
}
API cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API cuStreamDestroy_v2(void* stream) {
    ENTER_CONTEXT;
    Stream* object = known<Stream>(stream);
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    const CUresult code = finish(object, object->submitted);
    for (Event* event : live<Event>) {
        if (event->stream == object) event->stream = nullptr;
    }
    destroy<Stream>(stream);
    return code;
}
API cuStreamSynchronize(void* stream) {
    ENTER_CONTEXT;
    return synchronise(STREAM);
}
API cuStreamQuery(void* stream) {
    ENTER_CONTEXT;
    Stream* object = STREAM;
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    return object->done == object->submitted ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
API cuStreamGetFlags(void* stream, unsigned* flags) {
    ENTER_CONTEXT;
    NOT_NULL(flags);
    Stream* object = STREAM;
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    *flags = !object->blocking;
    return CUDA_SUCCESS;
}
API cuEventCreate(void** event, unsigned flags) {
    ENTER_CONTEXT;
    NOT_NULL(event);
    *event = make(new Event{flags});
    return CUDA_SUCCESS;
}
API cuEventDestroy_v2(void* event) {
    ENTER;
    return destroy<Event>(event);
}
API cuEventRecord(void* handle, void* stream) {
    ENTER_CONTEXT;
    Event* event = known<Event>(handle);
    Stream* on = STREAM;
    if (!event || !on) return CUDA_ERROR_INVALID_HANDLE;
    event->capture = on->capture;
    event->stream = on;
    if (on->capture) return CUDA_SUCCESS;
    event->passed = false;
    TRY(submit(on, [event] {
        if (live<Event>.count(event)) event->passed = true, event->time = std::chrono::steady_clock::now();
        return CUDA_SUCCESS;
    }));
    event->at = on->submitted;
    return CUDA_SUCCESS;
}
API cuEventRecordWithFlags(void* event, void* stream, unsigned) { return cuEventRecord(event, stream); }
API cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    ENTER_CONTEXT;
    Event* event = known<Event>(handle);
    Stream* waiting = STREAM;
    if (!event || !waiting) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) {
        if (waiting->capture && waiting->capture != event->capture) return CUDA_ERROR_STREAM_CAPTURE_MERGE;
        waiting->capture = event->capture; // joins: what was recorded before it comes before it
        return CUDA_SUCCESS;
    }
    if (!event->stream) return CUDA_SUCCESS;
    if (waiting->capture) {
        waiting->capture->broken = true;
        return complain(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "a captured stream waits for an event of before its capture");
    }
    return submit(waiting, [on = event->stream, until = event->at] {
        return live<Stream>.count(on) || on == &on->device->stream ? finish(on, until) : CUDA_SUCCESS;
    });
}
API cuEventSynchronize(void* handle) {
    ENTER_CONTEXT;
    Event* event = known<Event>(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) return CUDA_ERROR_CAPTURED_EVENT;
    return event->stream ? finish(event->stream, event->at) : CUDA_SUCCESS;
}
API cuEventQuery(void* handle) {
    ENTER_CONTEXT;
    Event* event = known<Event>(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture) return CUDA_ERROR_CAPTURED_EVENT;
    return event->stream && !event->passed ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* first, void* last) {
    ENTER_CONTEXT;
    NOT_NULL(milliseconds);
    Event *start = known<Event>(first), *end = known<Event>(last);
    if (!start || !end || (start->flags | end->flags) & 2 || !start->at || !end->at) return CUDA_ERROR_INVALID_HANDLE;
    if (!start->passed || !end->passed) return CUDA_ERROR_NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return CUDA_SUCCESS;
}
API cuEventElapsedTime_v2(float* milliseconds, void* first, void* last) {
    return cuEventElapsedTime(milliseconds, first, last);
}

// ---- Graphs

API cuStreamBeginCapture_v2(void* stream, int mode) {
    ENTER_CONTEXT;
    Stream* object = STREAM;
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    if (object == DEFAULT) return complain(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the default stream can't be captured");
    if (object->capture || mode < 0 || mode > 2) return CUDA_ERROR_ILLEGAL_STATE;
    object->capture = std::make_shared<Capture>();
    object->capture->mode = mode;
    object->capture->thread = &this_thread;
    object->origin = true;
    return CUDA_SUCCESS;
}
API cuStreamEndCapture(void* stream, void** graph) {
    ENTER_CONTEXT;
    NOT_NULL(graph);
    *graph = nullptr;
    Stream* object = STREAM;
    if (!object || !object->capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (!object->origin) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    const std::shared_ptr<Capture> capture = object->capture;
    for (Stream* other : live<Stream>) {
        if (other->capture == capture) other->capture = nullptr, other->origin = false;
    }
    if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = make(new Graph{std::move(capture->work)});
    return CUDA_SUCCESS;
}
API cuStreamIsCapturing(void* stream, int* status) {
    ENTER_CONTEXT;
    NOT_NULL(status);
    Stream* object = STREAM;
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    *status = object->capture ? 1 + object->capture->broken : 0;
    return CUDA_SUCCESS;
}
API cuThreadExchangeStreamCaptureMode(int* mode) {
    ENTER;
    NOT_NULL(mode);
    return CUDA_SUCCESS;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    ENTER_CONTEXT;
    NOT_NULL(executable);
    Graph* object = known<Graph>(graph);
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    Executable* made = make(new Executable);
    made->work = object->work;
    *executable = made;
    return CUDA_SUCCESS;
}
API cuGraphUpload(void* executable, void*) {
    ENTER_CONTEXT;
    return known<Executable>(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
API cuGraphLaunch(void* executable, void* stream) {
    ENTER_CONTEXT;
    Executable* object = known<Executable>(executable);
    if (!object || !STREAM) return CUDA_ERROR_INVALID_HANDLE;
    return submit(STREAM, [work = object->work]() mutable {
        for (Work& each : work) TRY(each());
        return CUDA_SUCCESS;
    });
}
API cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    ENTER_CONTEXT;
    NOT_NULL(count && !nodes); // only how many there are
    Graph* object = known<Graph>(graph);
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    *count = object->work.size();
    return CUDA_SUCCESS;
}
API cuGraphDestroy(void* graph) {
    ENTER;
    return destroy<Graph>(graph);
}
API cuGraphExecDestroy(void* executable) {
    ENTER;
    return destroy<Executable>(executable);
}

// ---- Errors

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
#define ERROR(name, text) {name, #name, text}
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    ERROR(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    ERROR(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the provided PTX was compiled with an unsupported toolchain."),
    ERROR(CUDA_ERROR_FILE_NOT_FOUND, "file not found"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    ERROR(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "system has unsupported display driver / cuda driver combination"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
#undef ERROR
};
API cuGetErrorName(CUresult code, const char** name) {
    for (const auto& error : errors) {
        if (error.code == code) return *name = error.name, CUDA_SUCCESS;
    }
    return *name = nullptr, CUDA_ERROR_INVALID_VALUE;
}
API cuGetErrorString(CUresult code, const char** text) {
    for (const auto& error : errors) {
        if (error.code == code) return *text = error.text, CUDA_SUCCESS;
    }
    return *text = nullptr, CUDA_ERROR_INVALID_VALUE;
}

// ---- What cudarc could call and nothing here needs: it would panic for want of a symbol

#define MISSING(name) \
    API name() { return complain(CUDA_ERROR_NOT_SUPPORTED, "the mock has no " #name); }
MISSING(cuCtxCreate_v3)
MISSING(cuCtxCreate_v4)
MISSING(cuCtxDestroy_v2)
MISSING(cuCtxGetCacheConfig)
MISSING(cuCtxGetLimit)
MISSING(cuCtxSetCacheConfig)
MISSING(cuCtxSetLimit)
MISSING(cuDestroyExternalMemory)
MISSING(cuDeviceGetDefaultMemPool)
MISSING(cuDeviceGetMemPool)
MISSING(cuDeviceSetMemPool)
MISSING(cuExternalMemoryGetMappedBuffer)
MISSING(cuImportExternalMemory)
MISSING(cuLaunchCooperativeKernel)
MISSING(cuMemAdvise_v2)
MISSING(cuMemAllocFromPoolAsync)
MISSING(cuMemAllocManaged)
MISSING(cuMemPoolCreate)
MISSING(cuMemPoolDestroy)
MISSING(cuMemPoolGetAttribute)
MISSING(cuMemPoolSetAttribute)
MISSING(cuMemPoolTrimTo)
MISSING(cuMemPrefetchAsync_v2)
MISSING(cuOccupancyAvailableDynamicSMemPerBlock)
MISSING(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)
MISSING(cuOccupancyMaxActiveClusters)
MISSING(cuOccupancyMaxPotentialBlockSize)
MISSING(cuOccupancyMaxPotentialBlockSizeWithFlags)
MISSING(cuOccupancyMaxPotentialClusterSize)
MISSING(cuProfilerStart)
MISSING(cuProfilerStop)
MISSING(cuStreamAttachMemAsync)
