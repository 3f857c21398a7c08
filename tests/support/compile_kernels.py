"""Compile the Triton kernels for GPUs that are not there: `python -m tests.support.compile_kernels 80 90`.

Prints for each kernel and architecture what it multiplies by. Not by the tests' own process, where Triton interprets.
"""

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stability.engine.kernels import ctc_gpu, gru_gpu

NUMBERS = dict.fromkeys([*gru_gpu._NUMBERS, *ctc_gpu._NUMBERS], "i32")


def compiled(kernel: Any, architecture: int, dtype: str, constants: dict[str, Any], types: dict[str, str]) -> str:
    """Return the kernel's assembly. Its arguments have that dtype, except numbers and those in `types`."""
    types = NUMBERS | dict.fromkeys(constants, "constexpr") | types
    signature = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names}
    by_place = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, by_place, aligned)
    target, options = GPUTarget("cuda", architecture, 32), {"enable_fp_fusion": True}
    assembly: str = triton.compile(source, target, options).asm["ptx"]
    return assembly


def main() -> None:
    """Compile all for each architecture, in the sizes of the official model."""
    shared = {"units": 768, "columns": 32, "precision": "ieee"}
    shapes = {"bf16": shared | {"rows": 64, "depth": 64}, "fp32": shared | {"rows": 16, "depth": 32}}
    lengths = {"spelled": "*i64", "frames": "*i64", "label_counts": "*i64"}
    for architecture in map(int, sys.argv[1:]):
        cases: list[tuple[Any, str, dict[str, Any], dict[str, str]]] = [
            (kernel, dtype, shape, {"carried": "*fp32"})
            for kernel in (gru_gpu._forward, gru_gpu._backward)
            for dtype, shape in shapes.items()
        ]
        cases += [
            (kernel, "fp32", {"blank": 0, "size": 256}, lengths) for kernel in (ctc_gpu._forward, ctc_gpu._backward)
        ]
        for kernel, dtype, constants, types in cases:
            assembly = compiled(kernel, architecture, dtype, constants, types)
            units = "tensor cores" if "mma" in assembly else "plain arithmetic"
            print(f"{kernel.__module__}.{kernel.__name__} in {dtype} for sm_{architecture}: {units}")


if __name__ == "__main__":
    main()
