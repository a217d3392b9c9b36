"""Kernels for the CPU, one file a family."""
