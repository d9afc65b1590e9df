"""Triton kernels, one file per family.

Importing this package, or any module in it, needs Triton and no GPU: nothing asks a driver for
anything before the first launch. `lanewise` imports it when the first CUDA tensor arrives.
"""
