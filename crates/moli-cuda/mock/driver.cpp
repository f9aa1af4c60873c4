// A libcuda.so.1 without a device: the part of the CUDA driver API that cudarc calls, over the project's own kernels compiled
// for this processor. It is for tests, on any machine, of memory, launches, their order and the kernels' arithmetic.
//
//   mock/build.sh FOLDER [MODULES]     makes FOLDER/libcuda.so.1, of what ../kernels/modules.txt lists unless told otherwise
//   mock/test.sh [FOLDER]              tests it with kernels of its own
//   LD_LIBRARY_PATH=FOLDER moli ...
//
// build.sh compiles kernels, with shim.h in front; exec.cpp runs their threads; device.cpp has memory, streams and modules.
//
// What it notices, beyond results, each said in one line on stderr:
//   - an access out of an allocation: each ends at a page that can't be touched; what lies before it, and up to 15 bytes
//     behind it, is looked at when it is freed
//   - memory or shared memory that was never written: all bytes are 0xFF (NaN, -1)
//   - a misaligned access, an index out of a shared array, a shift by 32, a division by zero, with file and line
//   - threads that diverge: that end, or are somewhere else, while others wait for them
//   - pointers that are not the device's, copies out of bounds or onto themselves, memory that is never freed
//   - kernels whose PTX isn't that of the sources: another name, other parameters; more threads or shared memory than it has
//   - what waits or allocates while a stream is being captured
// As with a device, a context is lost after a kernel's fault, until its last release.
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
// Not here: parallelism (one thread at a time, for the whole process, so that a kernel which waits for another block in a loop
// never ends), the device's timing, the last bits of its fast functions, products that its compiler fuses with a sum (unless
// it is told --fmad=false), the order in which its matrix units add floats, memory pools, textures, globals of modules.
#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#define API extern "C" __attribute__((visibility("default"))) CUresult
// What each call begins with.
#define ENTER                                               \
    std::lock_guard<std::recursive_mutex> lock(everything); \
    if (devices.empty()) return CUDA_ERROR_NOT_INITIALIZED
#define ENTER_CONTEXT                                \
    ENTER;                                           \
    if (!current) return CUDA_ERROR_INVALID_CONTEXT; \
    if (current->lost) return current->lost
#define NOT_NULL(pointer) \
    if (!(pointer)) return CUDA_ERROR_INVALID_VALUE
#define VALID_DEVICE(device) \
    if (device < 0 || device >= knobs.devices) return CUDA_ERROR_INVALID_DEVICE

static long knob(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value && *value ? strtol(value, nullptr, 10) : otherwise;
}

// ---- Start, devices, contexts

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
API cuDeviceGetPCIBusId(char* id, int size, int device) {
    ENTER;
    VALID_DEVICE(device);
    NOT_NULL(id);
    if (size < 13) return CUDA_ERROR_INVALID_VALUE;
    snprintf(id, size, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}
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
    reset(&devices[device]);
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
    *free = knobs.memory - std::min(knobs.memory, current->used), *total = knobs.memory;
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
    Module* object = known<Module>(module);
    if (!object) return CUDA_ERROR_INVALID_HANDLE;
    for (const auto& named : object->functions) destroy<Function>(named.second);
    return destroy<Module>(module);
}
API cuModuleGetFunction(void** function, void* handle, const char* name) {
    ENTER_CONTEXT;
    NOT_NULL(function && name);
    Module* module = known<Module>(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (!module->functions.count(name)) {
        Function linked;
        TRY(link(linked, module->text, name));
        linked.max_dynamic = (48 << 10) - std::min(linked.shared, 48u << 10);
        module->functions[name] = make(new Function(linked));
    }
    *function = module->functions.at(name);
    return CUDA_SUCCESS;
}
API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, void*, const char*) { return CUDA_ERROR_NOT_FOUND; }
API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    ENTER_CONTEXT;
    NOT_NULL(value);
    const Function* function = known<Function>(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
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
    Function* function = known<Function>(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute == 9) return CUDA_SUCCESS; // how much of the cache is shared memory
    if (attribute != 8 || value < 0 || value + function->shared > most_shared()) return CUDA_ERROR_INVALID_VALUE;
    function->max_dynamic = value;
    return CUDA_SUCCESS;
}
API cuFuncSetCacheConfig(void*, int) { return CUDA_SUCCESS; }
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t dynamic) {
    ENTER_CONTEXT;
    const Function* function = known<Function>(handle);
    NOT_NULL(blocks && function && threads > 0);
    const size_t shared = function->shared + dynamic + 1024;
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
    forget(object);
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
    return submit(waiting, wait_for(event->stream, event->at));
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

static CUresult look_up(CUresult wanted, const char** name, const char** description) {
#define X(known, code, text) \
    if (wanted == code) return *name = #known, *description = text, CUDA_SUCCESS;
    ERRORS(X)
#undef X
    return *name = *description = nullptr, CUDA_ERROR_INVALID_VALUE;
}
API cuGetErrorName(CUresult code, const char** name) {
    const char* text;
    return look_up(code, name, &text);
}
API cuGetErrorString(CUresult code, const char** text) {
    const char* name;
    return look_up(code, &name, text);
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
