// Launches kernels on a tensor's device and torch's current stream, with scratch from torch's
// allocator. The tests' CPU emulator has a Launcher of its own, for the same host code.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#ifndef __CUDACC__
#include "emulated_launcher.h"
#else

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <string>
#include <vector>

#include "../tensors.h"
#include "geometry.h"

// Not in libtorch for the CPU, where the extension loads too; called where there are CUDA tensors.
#pragma weak aoti_torch_get_current_cuda_stream

#define SELAVI_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(selavi, CUDA, m)

namespace selavi::cuda {

inline void check(cudaError_t error, const char* name) {
  STD_TORCH_CHECK(error == cudaSuccess, "selavi: ", name, ": ", cudaGetErrorString(error));
}

class Launcher {
 public:
  // On the device of `tensor`, which is current while this lives.
  explicit Launcher(const Tensor& tensor)
      : tensor_(tensor), device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Of no blocks: nothing.
  template <typename... Parameters, typename... Arguments>
  void launch(const char* name, const Geometry& geometry, void (*kernel)(Parameters...),
              const Arguments&... arguments) {
    if (geometry.grid.x == 0) return;
    if (geometry.shared > kSharedWithoutAsking) {
      check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(geometry.shared)),
            name);
    }
    cudaLaunchAttribute attributes[2];
    unsigned count = 0;
    if (geometry.cluster > 1) {
      cudaFuncAttributes compiled;
      check(cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(kernel)), name);
      STD_TORCH_CHECK(compiled.ptxVersion >= 90, "selavi: ", name,
                      " was compiled for older GPUs than this one; build selavi with 9.0 in "
                      "TORCH_CUDA_ARCH_LIST");
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count].val.clusterDim = {static_cast<unsigned>(geometry.cluster), 1, 1};
      ++count;
    }
    if (geometry.cooperative) {
      attributes[count].id = cudaLaunchAttributeCooperative;
      attributes[count].val.cooperative = 1;
      ++count;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = geometry.grid;
    config.blockDim = dim3(static_cast<unsigned>(geometry.threads));
    config.dynamicSmemBytes = geometry.shared;
    config.stream = stream_;
    config.attrs = attributes;
    config.numAttrs = count;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
  }

  // Uninitialised device memory that lasts as long as this.
  template <typename T>
  T* allocate(int64_t count) {
    scratch_.push_back(torch::stable::new_empty(tensor_, {count * static_cast<int64_t>(sizeof(T))},
                                                ScalarType::Byte));
    return static_cast<T*>(scratch_.back().mutable_data_ptr());
  }

  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  bool clusters() const { return attribute(cudaDevAttrComputeCapabilityMajor) >= 9; }
  size_t largest_shared() const {
    return static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  }

 private:
  static constexpr size_t kSharedWithoutAsking = 48 << 10;

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device_), "cudaDeviceGetAttribute");
    return value;
  }

  Tensor tensor_;
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  std::vector<Tensor> scratch_;
};

}  // namespace selavi::cuda

#endif
