"""Compile the Triton kernels for GPUs that are not there: `python -m tests.support.compile_kernels 80 90`.

Prints for each kernel and architecture what it multiplies by, and its registers, as NVIDIA's assembler counts them. Not
by the tests' own process, where Triton interprets.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stability.engine.kernels import TRITON_OPTIONS, ctc_gpu, gru_gpu, gru_layer_gpu, patches_gpu

NUMBERS = dict.fromkeys([*gru_gpu._NUMBERS, *ctc_gpu._NUMBERS, *patches_gpu._NUMBERS, *gru_layer_gpu._NUMBERS], "i32")


def compiled(
    kernel: Any, architecture: int, dtype: str, constants: dict[str, Any], types: dict[str, str], warps: int
) -> Any:
    """Compile a kernel. Its arguments have that dtype, except numbers and those in `types`."""
    types = NUMBERS | dict.fromkeys(constants, "constexpr") | types
    signature = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names}
    by_place = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, by_place, aligned)
    options = {"num_warps": warps, "launch_pdl": constants.get("early", False), **TRITON_OPTIONS}
    if kernel.__module__ == gru_layer_gpu.__name__:
        options |= {"num_stages": 1, "launch_cooperative_grid": True}
    return triton.compile(source, GPUTarget("cuda", architecture, 32), options)


def registers(assembly: str, architecture: int) -> tuple[str, str]:
    """Return the registers of a thread, and the bytes that did not fit into them."""
    target = f"sm_{architecture}" + ("a" if architecture >= 90 else "")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newest = [tools / "ptxas-blackwell"] if architecture >= 90 else []
    assembler = next(tool for tool in (*newest, tools / "ptxas") if tool.exists())
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(assembly)
        file.flush()
        command = [str(assembler), "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (used,), (spilled,) = re.findall(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill stores", said)
    return used, spilled


def waits_before_it_reads(assembly: str) -> bool:
    """Return whether the kernel waits for the one before it. It must not read or write memory before that."""
    waits = assembly.find("griddepcontrol.wait")
    accesses = re.search(r"(ld|st)\.global|cp\.async", assembly)
    assert accesses is not None
    assert waits < accesses.start()
    return waits >= 0


def main() -> None:
    """Compile all for each architecture, in the sizes of the official model."""
    shapes = {"bf16": {"rows": 64, "depth": 64}, "fp32": {"rows": 16, "depth": 32}}
    lengths = {"spelled": "*i64", "frames": "*i64", "label_counts": "*i64"}
    for architecture in map(int, sys.argv[1:]):
        cases: list[tuple[Any, str, dict[str, Any], dict[str, str], int]] = [
            (
                kernel,
                dtype,
                shape | {"units": 768, "columns": columns, "precision": "ieee", "early": early},
                {"carried": "*fp32"},
                warps,
            )
            for columns, warps, _ in gru_gpu.VARIANTS
            for kernel in (gru_gpu._forward, gru_gpu._backward)
            for dtype, shape in shapes.items()
            for early in ((False, True) if architecture >= 90 and dtype == "bf16" else (False,))
        ]
        layer = {
            "units": 768,
            "rows": gru_layer_gpu._ROWS,
            "depth": gru_layer_gpu._DEPTH,
            "columns": gru_gpu.LAYER.columns,
        }
        places = {"places": "*i32", "arrived": "*i32", "carried": "*fp32"}
        cases += [
            (kernel, "bf16", layer, places, gru_gpu.LAYER.warps)
            for kernel in (gru_layer_gpu._forward, gru_layer_gpu._backward)
        ]
        cases += [
            (kernel, "fp32", {"blank": 0, "size": 256}, lengths, 4) for kernel in (ctc_gpu._forward, ctc_gpu._backward)
        ]
        patches = {
            "features": 512,
            "size": 14,
            "stride": 4,
            "block_bins": patches_gpu._BINS,
            "block_features": patches_gpu._FEATURES,
        }
        others = {
            "biases": "*fp32",
            "day_of_row": "*i64",
            "slot_of": "*i64",
            "masks": "*u8",
            "scale": "fp32",
            "sums": "*fp32",
        }
        cases += [
            (kernel, dtype, patches, others, 4)
            for kernel in (patches_gpu._forward, patches_gpu._backward)
            for dtype in shapes
        ]
        for kernel, dtype, constants, types, warps in cases:
            result = compiled(kernel, architecture, dtype, constants, types, warps)
            units = "tensor cores" if "mma" in result.asm["ptx"] else "plain arithmetic"
            used, spilled = registers(result.asm["ptx"], architecture)
            units += ", starts early" if waits_before_it_reads(result.asm["ptx"]) else ""
            size = f"{constants['columns']} columns, {warps} warps" if "columns" in constants else f"{warps} warps"
            print(
                f"{kernel.__module__}.{kernel.__name__} in {dtype} for sm_{architecture}, {size}: {units}, {used} "
                f"registers, {result.metadata.shared >> 10} KB shared, {spilled} bytes spilled"
            )


if __name__ == "__main__":
    main()
