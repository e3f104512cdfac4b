"""The launches of an operator, taken off a run on fake tensors of a GPU that need not be there.

They are compiled ahead of time as they would be launched: shapes, strides, specialisation, warps.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import MockTensor, create_function_from_signature

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def key(self) -> str:
        """The same for launches that are compiled alike."""
        kinds = [
            argument.dtype
            if isinstance(argument, torch.Tensor)
            else (argument == 1, argument % 16 == 0, argument < 2**31)
            for argument in self.arguments
        ]
        return f"{self.kernel.__name__} {kinds} {self.options}"

    def compile(self, architecture: int) -> Any:
        """By the path of JITFunction.run, but for a GPU that is named and not found."""
        target = GPUTarget("cuda", architecture, 32)
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        mocks = [
            MockTensor(argument.dtype) if isinstance(argument, torch.Tensor) else argument
            for argument in self.arguments
        ]
        bound, specialization, _ = bind(*mocks, **self.options)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, self.options, bound, specialization, None
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options.__dict__)


@dataclass(frozen=True)
class Resources:
    registers: int
    shared: int
    stack: int  # bytes a thread; a spill needs some
    spills: float  # the largest share that loads and stores of spills have in a loop's instructions

    @classmethod
    def of(cls, compiled: Any) -> "Resources":
        usage = dict(re.findall(r"(REG|STACK):(\d+)", disassemble(compiled, "-res-usage")))
        stack = int(usage["STACK"])
        spills = spills_in_loops(disassemble(compiled, "-sass")) if stack else 0.0
        return cls(int(usage["REG"]), compiled.metadata.shared, stack, spills)


def disassemble(compiled: Any, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def spills_in_loops(sass: str) -> float:
    """A loop is what a jump backward spans (not to itself: that ends a kernel)."""
    code = [
        (int(address, 16), text)
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass)
    ]
    shares = [0.0]
    for address, text in code:
        jump = re.search(r"\bBRA.* 0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            loop = [t for at, t in code if int(jump[1], 16) <= at <= address]
            shares.append(sum(bool(re.search(r"\b(LDL|STL)", t)) for t in loop) / len(loop))
    return max(shares)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Launches are written down and not made, while tensors are fake."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        launches.append(Launch(kernel, programs, arguments, options))

    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith("selavi.kernels.") and hasattr(module, "launch")
    ]
    originals = [module.launch for module in modules]
    for module in modules:
        module.launch = record
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield launches
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.launch = original


def launches_of(call: Callable[[], object]) -> list[Launch]:
    with recorded_launches() as launches:
        call()
    return launches
