"""Kernels for what PyTorch's operations do too slowly: `*_cpu` in C, for float32, and `*_gpu` in Triton.

Each has the interface of the PyTorch code that it replaces. Where a kernel does not apply, that code runs.
"""
