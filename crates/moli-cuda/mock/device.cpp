// See device.h.
#include "device.h"

#include <algorithm>
#include <sstream>
#include <sys/mman.h>
#include <unistd.h>

std::recursive_mutex everything;
Knobs knobs;
std::deque<Device> devices;
std::map<uintptr_t, Allocation> allocations;
thread_local Device* current;
thread_local char this_thread;

CUresult complain(CUresult code, const std::string& text) {
    fprintf(stderr, "mock CUDA: %s\n", text.c_str());
    return code;
}

// ---- Memory

// An allocation's bytes end at a page that can't be touched, or up to 15 bytes before it, since kernels read 16 at once.
constexpr size_t PAGE = 4096, ALIGNMENT = 16;
constexpr unsigned char FRESH = 0xFF;

// Makes pages of 0xFF. A large range takes them from one file again and again, so that it has no memory before it is written.
static bool make_fresh(char* first, size_t size) {
    constexpr size_t PART = 16 << 20;
    static const int file = [] {
        const int made = memfd_create("0xFF", MFD_CLOEXEC);
        const std::string part(PART, static_cast<char>(FRESH));
        return made >= 0 && write(made, part.data(), PART) == (ssize_t)PART ? made : -1;
    }();
    size_t at = 0;
    for (; file >= 0 && size - at >= PART; at += PART) {
        const int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
        if (mmap(first + at, PART, PROT_READ | PROT_WRITE, flags, file, 0) == MAP_FAILED) return false;
    }
    if (at == size) return true;
    if (mprotect(first + at, size - at, PROT_READ | PROT_WRITE) != 0) return false;
    memset(first + at, FRESH, size - at);
    return true;
}

Allocation* find(CUdeviceptr address, size_t size) {
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return nullptr;
    auto& [start, allocation] = *--next;
    const size_t offset = address - start;
    return offset <= allocation.size && size <= allocation.size - offset ? &allocation : nullptr;
}

CUresult allocate(CUdeviceptr* address, size_t size, Device* device) {
    if (!address || size == 0) return CUDA_ERROR_INVALID_VALUE;
    if (device) {
        if (knobs.fail_allocation > 0 && --knobs.fail_allocation == 0) return CUDA_ERROR_OUT_OF_MEMORY;
        if (size > knobs.memory || device->used > knobs.memory - size) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const size_t pages = (size + PAGE - 1) / PAGE * PAGE, map_size = pages + 2 * PAGE;
    void* map = mmap(nullptr, map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    char* first = static_cast<char*>(map) + PAGE;
    if (!make_fresh(first, pages)) {
        munmap(map, map_size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
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

void reset(Device* device) {
    finish_all(device);
    size_t count = 0;
    for (auto each = allocations.begin(); each != allocations.end();) {
        const auto [address, allocation] = *each++;
        if (allocation.device == device) count++, release(address, true);
    }
    if (count && !device->lost) complain(CUDA_SUCCESS, std::to_string(count) + " allocations were never freed");
    const std::set<Stream*> streams = live<Stream>;
    for (Stream* stream : streams) {
        if (stream->device == device) forget(stream);
    }
    device->stream.queue.clear();
    device->stream.done = device->stream.submitted;
    device->lost = CUDA_SUCCESS;
}

// Device memory of this size, or memory of the host that the device sees.
static CUresult check(CUdeviceptr address, size_t size, const char* what) {
    if (size == 0 || find(address, size)) return CUDA_SUCCESS;
    std::ostringstream text;
    text << what << " of " << size << " bytes at 0x" << std::hex << address << ", "
         << describe_address(reinterpret_cast<void*>(address));
    return complain(CUDA_ERROR_INVALID_VALUE, text.str());
}

// ---- Streams: work is queued, and done at once unless it is to be lazy

Stream* stream_of(void* handle) {
    return reinterpret_cast<uintptr_t>(handle) <= 2 ? &current->stream : known<Stream>(handle);
}

CUresult finish(Stream* stream, uint64_t until) {
    until = std::min(until, stream->submitted); // a stream may have the address of one that is gone
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

Work wait_for(Stream* other, uint64_t until) {
    const bool standard = other == &other->device->stream;
    return [=] { return standard || live<Stream>.count(other) ? finish(other, until) : CUDA_SUCCESS; };
}

static void enqueue(Stream* stream, Work work) {
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
        enqueue(stream, wait_for(other, other->submitted));
    }
    enqueue(stream, std::move(work));
    return knobs.lazy ? CUDA_SUCCESS : finish(stream, stream->submitted);
}

// What waits or allocates breaks a capture, unless that is relaxed.
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

void forget(Stream* stream) {
    for (Event* event : live<Event>) {
        if (event->stream == stream) event->stream = nullptr;
    }
    destroy<Stream>(stream);
}

// A copy. Host memory that is not pinned is read before the call returns, and written before it returns, too.
CUresult copy(Stream* stream, CUdeviceptr to, CUdeviceptr from, size_t size, bool to_device, bool from_device, bool wait) {
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (wait) TRY(not_while_capturing("a copy that waits"));
    if (to_device) TRY(check(to, size, "a copy to device memory"));
    if (from_device) TRY(check(from, size, "a copy from device memory"));
    if (size == 0) return CUDA_SUCCESS;
    if (to < from + size && from < to + size) return complain(CUDA_ERROR_INVALID_VALUE, "a copy to where it is from");
    std::shared_ptr<std::string> staged;
    if (!stream->capture && !from_device && !find(from, size)) {
        staged = std::make_shared<std::string>(reinterpret_cast<char*>(from), size);
    }
    TRY(submit(stream, [=] {
        if (to_device) TRY(check(to, size, "a copy to device memory"));
        if (from_device) TRY(check(from, size, "a copy from device memory"));
        memcpy(reinterpret_cast<void*>(to), staged ? staged->data() : reinterpret_cast<void*>(from), size);
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
static std::string bracketed(const std::string& text, size_t from, char open, char close) {
    const size_t start = text.find(open, from);
    if (start == std::string::npos) return "";
    size_t end = start + 1;
    for (int depth = 1; end < text.size() && depth; end++) depth += (text[end] == open) - (text[end] == close);
    return text.substr(start + 1, end - start - 2);
}

// Bytes of a declaration such as `.param .align 4 .b8 name[12]` or `.shared .u32 name`.
static size_t declared_size(const std::string& declaration) {
    static const std::map<std::string, size_t> sizes = {
        {".b8", 1},  {".u8", 1},  {".s8", 1},  {".b16", 2}, {".u16", 2}, {".s16", 2}, {".f16", 2},
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

static std::vector<std::string> declarations(const std::string& text, const std::string& kind, const char* ends) {
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
    if (!module || !image) return CUDA_ERROR_INVALID_VALUE;
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

unsigned most_shared() {
    switch (knobs.capability) {
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: return 99 << 10;
    default: return knobs.capability >= 90 ? 227 << 10 : 96 << 10;
    }
}

namespace {
// A kernel's arguments, kept for when it runs.
struct Launch {
    const MoliKernel& kernel;
    const Device* device;
    dim3 grid, block;
    unsigned shared;
    std::vector<std::vector<unsigned char>> values;

    CUresult operator()() {
        if (knobs.fail_launch > 0 && --knobs.fail_launch == 0) return CUDA_ERROR_LAUNCH_FAILED;
        std::vector<void*> pointers;
        for (size_t i = 0; i < values.size(); i++) {
            pointers.push_back(values[i].data());
            CUdeviceptr address = 0;
            if (kernel.parameters[i].pointer) memcpy(&address, values[i].data(), sizeof address);
            const Allocation* found = find(address, 0);
            if (!address || (found && (!found->device || found->device == device))) continue;
            return complain(CUDA_ERROR_ILLEGAL_ADDRESS,
                            std::string("kernel ") + kernel.name + ": parameter " + std::to_string(i) + " is " +
                                (found ? "another device's" : describe_address(reinterpret_cast<void*>(address))));
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
} // namespace

CUresult launch(void* handle, dim3 grid, dim3 block, unsigned shared, void* on, void** arguments, void** extra) {
    const Function* function = known<Function>(handle);
    Stream* stream = stream_of(on);
    if (!stream || !function) return CUDA_ERROR_INVALID_HANDLE;
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
    Launch work{kernel, stream->device, grid, block, shared, {}};
    for (size_t i = 0; i < kernel.count; i++) {
        const unsigned char* value = static_cast<unsigned char*>(arguments[i]);
        work.values.emplace_back(value, value + kernel.parameters[i].size);
    }
    return submit(stream, std::move(work));
}
