"""What of selavi.ops is usable on this machine, what "auto" takes, and why not the others."""

import platform
from collections.abc import Iterator
from importlib.util import find_spec

import torch

import selavi
from selavi.ops import _choice, _library


def report() -> Iterator[str]:
    """The lines of `selavi doctor`."""
    python = platform.python_version()
    yield f"selavi {selavi.__version__}, Python {python}, torch {torch.__version__}"
    yield f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    gpus = range(torch.cuda.device_count())
    for index in gpus:
        properties = torch.cuda.get_device_properties(index)
        yield (
            f"GPU {index}: {properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    if not gpus:
        yield "GPU: none that torch can use"
    if find_spec("triton") is not None:
        from triton import __version__ as triton

        yield f"Triton {triton}{', interpreted on the CPU' if _library.is_interpreted() else ''}"
    yield ""
    states = _library.backends()
    yield "backends of selavi.ops"
    yield from (f"  {name:<7} {state}" for name, state in states.items())
    yield ""
    yield 'what backend="auto" takes'
    yield f"  on the CPU: {'cpu' if states['cpu'] == 'available' else 'torch'}"
    yield from (f"  on a GPU:   {line}" for line in on_gpu())


def on_gpu() -> Iterator[str]:
    """What "auto" takes there, line by line."""
    usable = _library.usable_on_gpu() if torch.cuda.is_available() else []
    if not torch.cuda.is_available():
        yield "there is none"
    elif len(usable) < 2:
        yield f"{usable[0]}, as the other cannot run" if usable else "torch, as no other can run"
    else:
        table = _choice.table()
        source = table["measured"] or "nothing yet: the default"
        yield f"{table['default']} but for what is below (measured: {source})"
        for primitive, sizes in table["faster"].items():
            for size, ranges in sizes.items():
                for columns, backend in ranges.items():
                    if backend != table["default"]:
                        most = "more" if columns == "more" else f"K <= {columns}"
                        yield f"{backend} for {primitive}, {most}, {size} bytes an entry"
