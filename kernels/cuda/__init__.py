"""Kernels for NVIDIA GPUs, written for numba-cuda."""
