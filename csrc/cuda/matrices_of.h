// A tensor as the CUDA kernels see it.
#pragma once

#include "../tensors.h"
#include "geometry.h"

namespace selavi::cuda {

template <typename Storage>
Matrices<Storage> matrices_of(const Tensor& tensor) {
  return {static_cast<const Storage*>(tensor.const_data_ptr()),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2)};
}

}  // namespace selavi::cuda
