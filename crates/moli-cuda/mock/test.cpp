// Tests the mock driver as a program sees it, with the kernels of test_kernels.cu; test.sh builds and runs it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

using Address = unsigned long long;
static void* library;
static int failures;

// A function of the driver; arguments must have the types of its declaration.
template <class... A> static int cu(const char* name, A... arguments) {
    void* function = dlsym(library, name);
    if (!function) {
        fprintf(stderr, "no symbol %s\n", name);
        exit(2);
    }
    return reinterpret_cast<int (*)(A...)>(function)(arguments...);
}

#define EXPECT(condition)                                                      \
    do {                                                                       \
        if (!(condition)) failures++, printf("line %d: %s\n", __LINE__, #condition); \
    } while (false)
#define EQUAL(left, right)                                                                           \
    do {                                                                                             \
        const auto a_ = (left);                                                                      \
        const auto b_ = (right);                                                                     \
        if (!(a_ == b_)) failures++, printf("line %d: %s is %g, not %g\n", __LINE__, #left, (double)a_, (double)b_); \
    } while (false)
#define OK(call) EQUAL(call, 0)

static void start() {
    void* context = nullptr;
    OK(cu("cuInit", 0u));
    OK(cu("cuDevicePrimaryCtxRetain", &context, 0));
    OK(cu("cuCtxSetCurrent", context));
}
static void stop() { OK(cu("cuDevicePrimaryCtxRelease_v2", 0)); }
// A context with a variable set, until the end of the scope.
struct With {
    const char* name;
    With(const char* name, const char* value) : name(name) {
        setenv(name, value, 1);
        start();
    }
    ~With() {
        stop();
        unsetenv(name);
        OK(cu("cuInit", 0u));
    }
};

static Address allocate(size_t size) {
    Address address = 0;
    OK(cu("cuMemAlloc_v2", &address, size));
    return address;
}
template <class T> static Address upload(const std::vector<T>& values) {
    const Address address = allocate(values.size() * sizeof(T));
    OK(cu("cuMemcpyHtoD_v2", address, (const void*)values.data(), values.size() * sizeof(T)));
    return address;
}
template <class T> static std::vector<T> download(Address address, size_t count) {
    std::vector<T> values(count);
    OK(cu("cuMemcpyDtoH_v2", (void*)values.data(), address, count * sizeof(T)));
    return values;
}
static void release(Address address) { OK(cu("cuMemFree_v2", address)); }

// What a compiler would write of these kernels, as far as the driver reads it.
static std::string ptx(const std::string& version = "8.0", const std::string& target = "sm_80") {
    std::string text = "//\n// Sample\n//\n.version " + version + "\n.target " + target + "\n.address_size 64\n";
    const auto entry = [&](const char* name, std::vector<const char*> types, const char* bounds = "", const char* body = "") {
        text += std::string("\n.visible .entry ") + name + "(\n";
        for (size_t i = 0; i < types.size(); i++) {
            text += std::string("\t.param ") + types[i] + " " + name + "_param_" + std::to_string(i);
            text += strstr(types[i], ".b8") ? "[8]" : "";
            text += i + 1 < types.size() ? ",\n" : "\n";
        }
        text += std::string(")\n") + bounds + "{\n" + body + "\tret;\n}\n";
    };
    const char *p = ".u64", *i = ".u32";
    entry("add", {p, p, p, i}, ".maxntid 256, 1, 1\n");
    entry("row_sums", {".u64 .ptr .align 1", p, i}, "", "\t.shared .align 4 .b8 parts[128];\n");
    entry("turn", {p});
    entry("warp_functions", {p, ".align 4 .b8"});
    for (const char* tile : {"tile_s8_k32", "tile_s8_k16", "tile_f16_k16", "tile_bf16_k16"}) entry(tile, {p, p, p, p});
    entry("halves", {p, p, p});
    entry("to_halves", {p, p});
    entry("products", {p, p, p, i});
    entry("half_a_barrier", {});
    for (const char* name : {"count", "missing_lane", "misaligned", "never_written", "race"}) entry(name, {p});
    entry("at_index", {p, ".u64"});
    entry("out_of_shared", {p, i});
    entry("deep", {p, i});
    entry("shift_and_divide", {p, i, i});
    // Not those of the sources.
    entry("no_such_kernel", {});
    return text;
}
static void* load(const std::string& text) {
    void* module = nullptr;
    OK(cu("cuModuleLoadData", &module, (const void*)text.c_str()));
    return module;
}
static void* function(void* module, const char* name) {
    void* found = nullptr;
    OK(cu("cuModuleGetFunction", &found, module, name));
    return found;
}

template <class... A>
static int launch_on(void* stream, void* function, unsigned grid, unsigned block, unsigned shared, A... arguments) {
    void* pointers[] = {&arguments..., nullptr};
    return cu("cuLaunchKernel", function, grid, 1u, 1u, block, 1u, 1u, shared, stream, &pointers[0], (void**)nullptr);
}
template <class... A> static int launch(const char* name, unsigned grid, unsigned block, unsigned shared, A... arguments) {
    void* module = load(ptx());
    const int code = launch_on(nullptr, function(module, name), grid, block, shared, arguments...);
    cu("cuModuleUnload", module);
    return code;
}

// ---- Kernels

static void test_kernels() {
    std::vector<float> a(1000), b(1000);
    for (int i = 0; i < 1000; i++) a[i] = i, b[i] = 0.5f * i;
    const Address first = upload(a), second = upload(b), sum = allocate(4000), sums = allocate(40);
    OK(launch("add", 4, 256, 0, first, second, sum, 1000));
    const auto added = download<float>(sum, 1000);
    for (int i = 0; i < 1000; i++) EQUAL(added[i], 1.5f * i);
    OK(launch("row_sums", 10, 128, 0, first, sums, 100));
    const auto summed = download<float>(sums, 10);
    for (int row = 0; row < 10; row++) EQUAL(summed[row], 100 * (100 * row + 49.5f));

    std::vector<int> numbers(96);
    for (int i = 0; i < 96; i++) numbers[i] = i;
    const Address values = upload(numbers), counter = upload(std::vector<int>{0});
    OK(launch("turn", 1, 96, 96 * 4, values));
    const auto turned = download<int>(values, 96);
    for (int i = 0; i < 96; i++) EQUAL(turned[i], 95 - i);
    OK(launch("count", 7, 40, 0, counter));
    EQUAL(download<int>(counter, 1)[0], 280);
    for (Address address : {first, second, sum, sums, values, counter}) release(address);
}

static void test_warp_functions() {
    struct {
        int width;
        unsigned mask;
    } settings;
    const Address out = allocate(12 * 32 * 4);
    for (int width : {1, 4, 8, 32}) {
        settings = {width, 0x00f0f00f};
        OK(launch("warp_functions", 1, 32, 0, out, settings));
        const auto got = download<int>(out, 12 * 32);
        for (int lane = 0; lane < 32; lane++) {
            const int first = lane / width * width, in = lane % width;
            int column = 0;
            const auto next = [&] { return got[column++ * 32 + lane]; };
            EQUAL(next(), first + 5 % width);
            EQUAL(next(), in >= 3 ? lane - 3 : lane);
            EQUAL(next(), in + 3 < width ? lane + 3 : lane);
            EQUAL(next(), (lane ^ 5) < first + width ? lane ^ 5 : lane);
            const int bits = next();
            float across;
            memcpy(&across, &bits, 4);
            EQUAL(across, (float)(lane ^ 1));
            EQUAL((unsigned)next(), 0x49249249u);
            EQUAL(next(), 1);
            EQUAL(next(), 496);
            EQUAL(next(), 0);
            EQUAL(next(), settings.mask >> lane & 1 ? 12 : 20);
            EQUAL(next(), 7);
            EQUAL(next(), -128 * 127 + -1 * 2 + 127 * -1 + 1 * 3 + lane);
        }
    }
    release(out);
}

// A and B in fragments, element by element as the PTX ISA's tables give them, against three loops.
template <class Element, class Number>
static void test_tile(const char* name, int k, Number (*number)(Element), Element (*any)()) {
    const int per = 4 / sizeof(Element), a_count = 16 * k / 32, b_count = 8 * k / 32; // elements of one lane
    Element a[16][32], b[32][8];
    Number c[16][8];
    for (auto& row : a) for (auto& x : row) x = any();
    for (auto& row : b) for (auto& x : row) x = any();
    for (auto& row : c) for (auto& x : row) x = rand() % 1000 - 500;
    std::vector<Element> a_fragments(32 * a_count), b_fragments(32 * b_count);
    std::vector<Number> c_fragments(32 * 4);
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane >> 2, in_group = lane % 4;
        for (int i = 0; i < a_count; i++) {
            const bool upper = per == 4 ? i < 4 || (8 <= i && i < 12) : i < 2 || (4 <= i && i < 6);
            const int column = in_group * per + (i & (per - 1)) + (i >= 2 * per ? 4 * per : 0);
            a_fragments[lane * a_count + i] = a[upper ? group : group + 8][column];
        }
        for (int i = 0; i < b_count; i++) {
            b_fragments[lane * b_count + i] = b[in_group * per + (i & (per - 1)) + (i >= per ? 4 * per : 0)][group];
        }
        for (int i = 0; i < 4; i++) c_fragments[lane * 4 + i] = c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)];
    }
    const Address fa = upload(a_fragments), fb = upload(b_fragments), fc = upload(c_fragments), fd = allocate(512);
    OK(launch(name, 1, 32, 0, fa, fb, fc, fd));
    const auto d = download<Number>(fd, 128);
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            const int row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
            Number sum = c[row][column];
            for (int j = 0; j < k; j++) sum += number(a[row][j]) * number(b[j][column]);
            EQUAL(d[lane * 4 + i], sum);
        }
    }
    for (Address address : {fa, fb, fc, fd}) release(address);
}
static void test_tiles() {
    const auto byte = [] { return (int8_t)(rand() % 256 - 128); };
    test_tile<int8_t, int>("tile_s8_k32", 32, [](int8_t x) { return (int)x; }, byte);
    test_tile<int8_t, int>("tile_s8_k16", 16, [](int8_t x) { return (int)x; }, byte);
    // Halves from 1 to 2 with six bits behind the point, of either sign: all sums are exact.
    test_tile<uint16_t, float>(
        "tile_f16_k16", 16, [](uint16_t h) { return (h & 0x8000 ? -1 : 1) * (1 + (h & 0x3ff) / 1024.0f); },
        [] { return (uint16_t)(0x3c00 | (rand() % 64) << 4 | (rand() % 2) << 15); });
    test_tile<uint16_t, float>(
        "tile_bf16_k16", 16, [](uint16_t h) { return (h & 0x8000 ? -1 : 1) * (1 + (h & 0x7f) / 128.0f); },
        [] { return (uint16_t)(0x3f80 | rand() % 128 | (rand() % 2) << 15); });
}

static void test_halves() {
    std::vector<uint16_t> all(65536);
    for (int i = 0; i < 65536; i++) all[i] = i;
    const Address in = upload(all), out = allocate(65536 * 4), back = allocate(65536 * 2);
    OK(launch("halves", 256, 256, 0, in, out, back));
    const auto floats = download<float>(out, 65536);
    const auto halves = download<uint16_t>(back, 65536);
    for (int i = 0; i < 65536; i++) {
        const int exponent = i >> 10 & 31, fraction = i & 1023;
        const double size = exponent == 0    ? std::ldexp(fraction, -24)
                            : exponent == 31 ? INFINITY
                                             : std::ldexp(1024 + fraction, exponent - 25);
        if (exponent == 31 && fraction) {
            EXPECT(std::isnan(floats[i]) && halves[i] == 0x7fff);
        } else {
            EQUAL((double)floats[i], i & 0x8000 ? -size : size);
            EQUAL(halves[i], i);
        }
    }
    // Between two neighbours: to the nearest, ties to even.
    const std::vector<float> near = {1 + 0x1p-11f, 1 + 0x1.8p-10f, 1 + 0x1.002p-11f, 65519.99f, 65520, 0x1p-25f, 0x1.002p-25f,
                                     0x1.8p-24f, 0x1.ffep-15f, -0x1p-30f};
    const std::vector<uint16_t> expected = {0x3c00, 0x3c02, 0x3c01, 0x7bff, 0x7c00, 0, 1, 2, 0x0400, 0x8000};
    const Address from = upload(near), to = allocate(20);
    OK(launch("to_halves", 1, 10, 0, from, to));
    const auto got = download<uint16_t>(to, 10);
    for (int i = 0; i < 10; i++) EQUAL(got[i], expected[i]);
    for (Address address : {in, out, back, from, to}) release(address);
}

// ---- What it notices

static Address out; // 400 bytes

// What was expected, and that the context is lost until its end.
static void expect_lost(int line, int code, int expected) {
    if (code != expected) failures++, printf("line %d: %d, not %d\n", line, code, expected);
    Address address;
    EQUAL(cu("cuMemAlloc_v2", &address, (size_t)16), expected);
    stop();
    start();
    out = upload(std::vector<int>(100));
}
#define LOST(code, expected) expect_lost(__LINE__, code, expected)

static void test_faults() {
    LOST(launch("half_a_barrier", 1, 64, 0), 719);
    LOST(launch("missing_lane", 2, 32, 0, out), 719);
    LOST(launch("at_index", 1, 1, 0, out, 100ll), 700);
    LOST(launch("at_index", 1, 1, 0, out, -2000ll), 700);
    LOST(launch("at_index", 1, 1, 0, out, 1ll << 42), 700);
    LOST(launch("misaligned", 1, 1, 0, out), 716);
    LOST(launch("out_of_shared", 1, 1, 0, out, 8), 700);
    OK(launch("out_of_shared", 1, 1, 0, out, 7));
    LOST(launch("shift_and_divide", 1, 1, 0, out, 32, 1), 719);
    LOST(launch("shift_and_divide", 1, 1, 0, out, 31, 0), 719);
    OK(launch("shift_and_divide", 1, 1, 0, out, 31, 1));
    LOST(launch("deep", 1, 1, 0, out, 100), 719);
    int host = 0;
    LOST(launch("count", 1, 1, 0, (Address)&host), 700);
    // All goes on after each of them.
    const Address counter = upload(std::vector<int>{0});
    OK(launch("count", 2, 64, 0, counter));
    EQUAL(download<int>(counter, 1)[0], 128);
    // A few bytes before an allocation, or behind one that isn't a multiple of 16, are noticed when it is freed.
    const Address odd = allocate(20);
    OK(launch("at_index", 1, 1, 0, odd, -1ll));
    EQUAL(cu("cuMemFree_v2", odd), 700);
    release(counter);

    // Large ones are fresh in another way.
    const size_t large = (40 << 20) + 20;
    Address much = allocate(large);
    const auto bytes = download<uint8_t>(much, large);
    for (size_t i = 0; i < large; i += 1000) EQUAL(bytes[i], 0xff);
    LOST(launch("at_index", 1, 1, 0, much, (long long)large / 4 + 3), 700);
    much = allocate(large);
    LOST(launch("at_index", 1, 1, 0, much, -2000ll), 700);
    const Address words = allocate(8);
    EQUAL(download<unsigned>(words, 1)[0], 0xffffffffu);
    OK(launch("never_written", 3, 1, 16, words));
    for (unsigned word : download<unsigned>(words, 2)) EQUAL(word, 0xffffffffu);
    release(words);
    release(out);
    EQUAL(cu("cuMemFree_v2", out), 1);
}

static void test_refusals() {
    void* module = load(ptx());
    void* found = nullptr;
    EQUAL(cu("cuModuleGetFunction", &found, module, "no_such_kernel"), 500);
    EQUAL(cu("cuModuleGetFunction", &found, module, "ad"), 500);
    std::string text = ptx();
    text.replace(text.find(".param .u32 add_param_3"), 11, ".param .u64");
    void* other = load(text);
    EQUAL(cu("cuModuleGetFunction", &found, other, "add"), 500);
    text.replace(text.find(",\n\t.param .u64 add_param_3"), 26, "");
    other = load(text);
    EQUAL(cu("cuModuleGetFunction", &found, other, "add"), 500);
    EQUAL(cu("cuModuleLoadData", &other, (const void*)"\177ELF"), 200);
    EQUAL(cu("cuModuleLoadData", &other, (const void*)ptx("8.0", "sm_90").c_str()), 218);

    int value = 0;
    OK(cu("cuFuncGetAttribute", &value, 1, function(module, "row_sums")));
    EQUAL(value, 128);
    OK(cu("cuFuncGetAttribute", &value, 0, function(module, "add")));
    EQUAL(value, 256);
    void* turn = function(module, "turn");
    const Address values = upload(std::vector<int>(1024)), none = 0;
    EQUAL(launch_on(nullptr, function(module, "add"), 1, 257, 0, none, none, none, 0), 1);
    EQUAL(launch_on(nullptr, turn, 1, 1025, 0, values), 1);
    EQUAL(launch_on(nullptr, turn, 0, 32, 0, values), 1);
    EQUAL(launch_on(nullptr, turn, 1, 32, 64 << 10, values), 1);
    EQUAL(cu("cuFuncSetAttribute", turn, 8, 200 << 10), 1);
    OK(cu("cuFuncSetAttribute", turn, 8, 64 << 10));
    OK(launch_on(nullptr, turn, 1, 32, 64 << 10, values));
    int host[2] = {};
    EQUAL(cu("cuMemcpyHtoD_v2", values + 4090, (const void*)host, (size_t)8), 1);
    EQUAL(cu("cuMemcpyDtoD_v2", values, values + 64, (size_t)65), 1);
    OK(cu("cuMemcpyDtoD_v2", values, values + 64, (size_t)64));
    EQUAL(cu("cuMemsetD8_v2", values, (unsigned char)0, (size_t)4097), 1);
    EQUAL(cu("cuStreamSynchronize", (void*)host), 400);
    release(values);
    const char* name = nullptr;
    OK(cu("cuGetErrorName", 719, &name));
    EXPECT(name && !strcmp(name, "CUDA_ERROR_LAUNCH_FAILED"));
    OK(cu("cuModuleUnload", module));
    EQUAL(launch_on(nullptr, turn, 1, 32, 0, values), 400);
}

static void test_variables() {
    setenv("MOLI_MOCK_DEVICES", "0", 1);
    EQUAL(cu("cuInit", 0u), 100);
    setenv("MOLI_MOCK_DEVICES", "2", 1);
    OK(cu("cuInit", 0u));
    int value = 0, second = 0;
    OK(cu("cuDeviceGetCount", &value));
    EQUAL(value, 2);
    OK(cu("cuDeviceGet", &second, 1));
    EQUAL(cu("cuDeviceGet", &second, 2), 101);
    void *first_context = nullptr, *context = nullptr;
    OK(cu("cuCtxGetCurrent", &first_context));
    OK(cu("cuDevicePrimaryCtxRetain", &context, 1));
    OK(cu("cuCtxSetCurrent", context));
    const Address there = upload(std::vector<int>{0});
    OK(launch("count", 1, 1, 0, there));
    OK(cu("cuCtxSetCurrent", first_context));
    EQUAL(launch("count", 1, 1, 0, there), 700);
    OK(cu("cuDevicePrimaryCtxReset_v2", 0));
    OK(cu("cuCtxSetCurrent", context));
    EQUAL(download<int>(there, 1)[0], 1);
    release(there);
    OK(cu("cuDevicePrimaryCtxRelease_v2", 1));
    OK(cu("cuCtxSetCurrent", first_context));
    unsetenv("MOLI_MOCK_DEVICES");
    setenv("MOLI_MOCK_INIT", "803", 1);
    EQUAL(cu("cuInit", 0u), 803);
    unsetenv("MOLI_MOCK_INIT");
    {
        With memory("MOLI_MOCK_MEMORY", "1000000");
        size_t free = 0, total = 0;
        Address address = 0;
        EQUAL(cu("cuMemAlloc_v2", &address, (size_t)1000001), 2);
        const Address most = allocate(600000);
        EQUAL(cu("cuMemAlloc_v2", &address, (size_t)400001), 2);
        OK(cu("cuMemGetInfo_v2", &free, &total));
        EQUAL(free, 400000u);
        EQUAL(total, 1000000u);
        release(most);
    }
    {
        With third("MOLI_MOCK_FAIL_ALLOCATION", "3");
        Address a = allocate(1), b = allocate(1), c = 0;
        EQUAL(cu("cuMemAlloc_v2", &c, (size_t)1), 2);
        c = allocate(1);
        for (Address address : {a, b, c}) release(address);
    }
    {
        With second_launch("MOLI_MOCK_FAIL_LAUNCH", "2");
        const Address counter = upload(std::vector<int>{0});
        OK(launch("count", 1, 1, 0, counter));
        EQUAL(launch("count", 1, 1, 0, counter), 719);
        OK(cu("cuDevicePrimaryCtxReset_v2", 0));
    }
    {
        With capability("MOLI_MOCK_CAPABILITY", "75");
        void* module = nullptr;
        EQUAL(cu("cuModuleLoadData", &module, (const void*)ptx().c_str()), 218);
        OK(cu("cuDeviceGetAttribute", &value, 75, 0));
        EQUAL(value, 7);
    }
    {
        With version("MOLI_MOCK_PTX", "7.8");
        void* module = nullptr;
        EQUAL(cu("cuModuleLoadData", &module, (const void*)ptx().c_str()), 222);
        OK(cu("cuModuleLoadData", &module, (const void*)ptx("7.8").c_str()));
    }
    setenv("MOLI_MOCK_DRIVER", "11080", 1);
    OK(cu("cuDriverGetVersion", &value));
    EQUAL(value, 11080);
    unsetenv("MOLI_MOCK_DRIVER");
    out = allocate(64 * 4);
    OK(launch("race", 1, 64, 0, out));
    EQUAL(download<int>(out, 64)[5], 7);
    {
        With reverse("MOLI_MOCK_REVERSE", "1");
        OK(launch("race", 1, 64, 0, out));
        EQUAL(download<int>(out, 64)[5], -1);
        test_kernels();
        test_warp_functions();
        test_tiles();
    }
    release(out);
}

// ---- Streams, events, graphs

static void test_lazy() {
    With lazy("MOLI_MOCK_LAZY", "1");
    void *one = nullptr, *two = nullptr, *event = nullptr, *pinned = nullptr;
    OK(cu("cuStreamCreate", &one, 1u));
    OK(cu("cuStreamCreate", &two, 1u));
    OK(cu("cuEventCreate", &event, 0u));
    OK(cu("cuMemHostAlloc", &pinned, (size_t)4, 0u));
    int& host = *(int*)pinned;
    host = 5;
    void* count = function(load(ptx()), "count");
    const Address counter = upload(std::vector<int>{0});
    OK(launch_on(one, count, 1, 32, 0, counter));
    OK(cu("cuEventRecord", event, one));
    EQUAL(cu("cuEventQuery", event), 600);
    EQUAL(download<int>(counter, 1)[0], 0); // nothing has made it wait for that stream
    OK(cu("cuMemcpyDtoHAsync_v2", pinned, counter, (size_t)4, two));
    OK(cu("cuStreamSynchronize", two));
    EQUAL(host, 0);
    OK(cu("cuStreamWaitEvent", two, event, 0u));
    OK(cu("cuMemcpyDtoHAsync_v2", pinned, counter, (size_t)4, two));
    EQUAL(host, 0);
    OK(cu("cuStreamSynchronize", two));
    EQUAL(host, 32);
    OK(cu("cuEventQuery", event));
    // A fault shows where something waits for it.
    OK(launch_on(one, count, 1, 1, 0, (Address)&event));
    EQUAL(cu("cuStreamSynchronize", one), 700);
    OK(cu("cuDevicePrimaryCtxReset_v2", 0));
    OK(cu("cuEventDestroy_v2", event));
    OK(cu("cuMemFreeHost", pinned));
    for (void* stream : {one, two}) EQUAL(cu("cuStreamDestroy_v2", stream), 400); // went with the context
}

static void test_graphs() {
    void *stream = nullptr, *graph = nullptr, *executable = nullptr, *event = nullptr;
    int status = 0;
    OK(cu("cuStreamCreate", &stream, 1u));
    OK(cu("cuEventCreate", &event, 2u));
    OK(cu("cuEventRecord", event, stream));
    void* module = load(ptx());
    const Address counter = upload(std::vector<int>{0}), copied = upload(std::vector<int>{0});
    OK(cu("cuStreamBeginCapture_v2", stream, 0));
    OK(cu("cuStreamIsCapturing", stream, &status));
    EQUAL(status, 1);
    OK(launch_on(stream, function(module, "count"), 3, 32, 0, counter));
    OK(cu("cuMemcpyDtoDAsync_v2", copied, counter, (size_t)4, stream));
    OK(launch_on(stream, function(module, "count"), 1, 4, 0, counter));
    OK(cu("cuStreamEndCapture", stream, &graph));
    EQUAL(download<int>(counter, 1)[0], 0); // recorded, not done
    OK(cu("cuGraphInstantiateWithFlags", &executable, graph, 0ull));
    OK(cu("cuGraphDestroy", graph));
    for (int i = 1; i <= 3; i++) {
        OK(cu("cuGraphLaunch", executable, stream));
        OK(cu("cuStreamSynchronize", stream));
        EQUAL(download<int>(counter, 1)[0], 100 * i);
        EQUAL(download<int>(copied, 1)[0], 100 * i - 4);
    }
    OK(cu("cuGraphExecDestroy", executable));
    EQUAL(cu("cuGraphLaunch", executable, stream), 400);

    // What ends a capture.
    Address address = 0;
    OK(cu("cuStreamBeginCapture_v2", stream, 0));
    EQUAL(cu("cuMemAlloc_v2", &address, (size_t)4), 900);
    EQUAL(cu("cuStreamEndCapture", stream, &graph), 901);
    OK(cu("cuStreamBeginCapture_v2", stream, 1));
    EQUAL(cu("cuStreamSynchronize", stream), 900);
    EQUAL(cu("cuStreamEndCapture", stream, &graph), 901);
    OK(cu("cuStreamBeginCapture_v2", stream, 1));
    EQUAL(cu("cuStreamWaitEvent", stream, event, 0u), 905);
    EQUAL(cu("cuStreamEndCapture", stream, &graph), 901);
    OK(cu("cuStreamBeginCapture_v2", stream, 2));
    release(allocate(4));
    OK(cu("cuStreamEndCapture", stream, &graph));
    OK(cu("cuGraphDestroy", graph));
    OK(cu("cuModuleUnload", module));
    OK(cu("cuEventDestroy_v2", event));
    OK(cu("cuStreamDestroy_v2", stream));
    release(counter);
    release(copied);
}

// How long a decoding step's integer products take: 135 million weights of one byte.
static void time_products() {
    const int n = 144, rows = 234375; // of 576 bytes
    const Address weights = allocate((size_t)rows * n * 4), x = allocate(n * 4), out = allocate(rows * 4);
    OK(cu("cuMemsetD8_v2", weights, (unsigned char)3, (size_t)rows * n * 4));
    OK(cu("cuMemsetD8_v2", x, (unsigned char)2, (size_t)n * 4));
    void *start = nullptr, *end = nullptr;
    float milliseconds = 0;
    OK(cu("cuEventCreate", &start, 0u));
    OK(cu("cuEventCreate", &end, 0u));
    OK(cu("cuEventRecord", start, (void*)nullptr));
    OK(launch("products", (rows + 7) / 8 - 1, 256, 0, weights, x, out, n));
    OK(cu("cuEventRecord", end, (void*)nullptr));
    OK(cu("cuEventElapsedTime", &milliseconds, start, end));
    EQUAL(download<int>(out, 1)[0], 6 * 576);
    for (Address address : {weights, x, out}) release(address);
    printf("135 million int8 products, 5 shuffles for each 576: %.0f ms\n", milliseconds);
}

int main(int, char** arguments) {
    library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    int count = 0;
    EQUAL(cu("cuDeviceGetCount", &count), 3); // not without cuInit
    start();
    test_kernels();
    test_warp_functions();
    test_tiles();
    test_halves();
    test_refusals();
    test_faults();
    test_graphs();
    stop();
    test_lazy();
    start();
    test_variables();
    time_products();
    stop();
    printf(failures ? "%d failures\n" : "all passed\n", failures);
    return failures != 0;
}
