"""For the tests of this folder, which run in Triton's interpreter: see ../test_interpreted.py."""

import importlib
import sys

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def interpreter_repaired():
    """What Triton 3.6's interpreter gets wrong.

    fma rounds twice, a cast to bfloat16 cuts bits off, a dot of bfloat16 multiplies the bits.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    importlib.import_module("selavi.kernels")
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def fma(self, x, y, z):
        wide = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def wide_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    def rounded_cast(self, source, kind):
        if kind.scalar != tl.bfloat16 or source.dtype.scalar not in (tl.float32, tl.float64):
            return cast(self, source, kind)
        rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.int16)
        return interpreter.TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)

    builder.create_fma, builder.create_dot = fma, wide_dot
    builder.cast_impl = rounded_cast
    # Few programs, which cost milliseconds each; chunks of several tiles all the same.
    sys.modules["selavi.kernels._launch"].PROGRAMS = 4
    sys.modules["selavi.kernels.sinkhorn_overlap"]._PROGRAMS = 4


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
