"""What PyTorch's operations are too slow for, by hand: `*_cpu` in C, for float32, and `*_gpu` in Triton.

Each has the interface of the PyTorch code that it replaces, which does the work wherever a kernel cannot.
"""
