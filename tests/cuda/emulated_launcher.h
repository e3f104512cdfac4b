// Takes the place of csrc/cuda/launcher.h's Launcher where kernels run in the CPU emulator, and
// puts the operators into the namespace selavi_emulated, for CPU tensors. The emulated device has
// clusters unless SELAVI_EMULATOR_CLUSTERS=0.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cuda/geometry.h"
#include "../../csrc/tensors.h"
#include "emulator.h"

#define SELAVI_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(selavi_emulated, CPU, m)

namespace selavi::cuda {

class Launcher {
 public:
  explicit Launcher(const Tensor&) {}

  template <typename... Parameters, typename... Arguments>
  void launch(const char* name, const Geometry& geometry, void (*kernel)(Parameters...),
              const Arguments&... arguments) {
    if (std::getenv("SELAVI_EMULATOR_TRACE") != nullptr) {
      std::fprintf(stderr, "%s: grid (%u, %u, %u), %d threads, %zu bytes, cluster of %d\n", name,
                   geometry.grid.x, geometry.grid.y, geometry.grid.z, geometry.threads,
                   geometry.shared, geometry.cluster);
    }
    STD_TORCH_CHECK(geometry.cluster == 1 || clusters(), name, ": this device has no clusters");
    STD_TORCH_CHECK(geometry.shared <= largest_shared(), name, ": too much shared memory");
    emulator::launch(geometry.grid, geometry.threads, geometry.shared, geometry.cluster,
                     geometry.cooperative, [&] { kernel(static_cast<Parameters>(arguments)...); });
  }

  template <typename T>
  T* allocate(int64_t count) {
    scratch_.push_back(
        std::make_unique<emulator::GuardedMemory>(static_cast<size_t>(count) * sizeof(T)));
    return reinterpret_cast<T*>(scratch_.back()->data());
  }

  int multiprocessors() const { return 4; }
  bool clusters() const {
    const char* value = std::getenv("SELAVI_EMULATOR_CLUSTERS");
    return value == nullptr || value[0] != '0';
  }
  size_t largest_shared() const { return size_t{clusters() ? 227u : 163u} << 10; }

 private:
  std::vector<std::unique_ptr<emulator::GuardedMemory>> scratch_;
};

}  // namespace selavi::cuda
