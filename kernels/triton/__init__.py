"""Triton kernels: the GPU back end."""
