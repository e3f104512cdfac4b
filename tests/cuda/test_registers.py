"""Every CUDA file compiles for every GPU that we build for, and no kernel spills registers."""

import shutil

import pytest

from tests.cuda import registers


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")
@pytest.mark.parametrize("target", registers.TARGETS)
def test_no_kernel_spills(target):
    assert registers.main([target]) == 0
