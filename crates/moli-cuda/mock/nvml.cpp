// libnvidia-ml.so.1 of the mock: what Moli asks NVIDIA's management library, of GPUs that take 50 W and are 44 °C.
//
//   MOLI_MOCK_NVML=counter   as GPUs since Volta, unless said otherwise
//                  power     no counter of energy: only the power now
//                  none      the library finds no driver
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {
enum Result { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9 };
constexpr unsigned long long WATTS = 50;

bool told(const char* what) {
    const char* value = getenv("MOLI_MOCK_NVML");
    return value && !strcmp(value, what);
}
}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API nvmlInit_v2() { return told("none") ? DRIVER_NOT_LOADED : SUCCESS; }
API nvmlShutdown() { return SUCCESS; }
// The device of a place is the place's number of its bus, which is never 0.
API nvmlDeviceGetHandleByPciBusId_v2(const char* place, void** device) {
    unsigned domain, bus;
    if (!place || !device) return INVALID_ARGUMENT;
    if (sscanf(place, "%x:%x:00.0", &domain, &bus) != 2 || domain != 0 || bus == 0) return NOT_FOUND;
    *device = reinterpret_cast<void*>(static_cast<size_t>(bus));
    return SUCCESS;
}
API nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
    if (!device || !millijoules) return INVALID_ARGUMENT;
    if (told("power")) return NOT_SUPPORTED;
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = WATTS * (now.tv_sec * 1000ull + now.tv_nsec / 1000000);
    return SUCCESS;
}
API nvmlDeviceGetPowerUsage(void* device, unsigned* milliwatts) {
    if (!device || !milliwatts) return INVALID_ARGUMENT;
    *milliwatts = WATTS * 1000;
    return SUCCESS;
}
API nvmlDeviceGetTemperature(void* device, unsigned sensor, unsigned* degrees) {
    if (!device || sensor != 0 || !degrees) return INVALID_ARGUMENT;
    *degrees = 44;
    return SUCCESS;
}
