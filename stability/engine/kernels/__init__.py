"""Kernels for what PyTorch's operations do too slowly: `*_cpu` in C, for float32, and `*_gpu` in Triton.

Each has the interface of the PyTorch code that it replaces. Where a kernel does not apply, that code runs.
"""

# Of each Triton kernel's launch. Triton 3.9 warns where the fusion is left open, as 3.10 has another default.
TRITON_OPTIONS = {"enable_fp_fusion": True}
