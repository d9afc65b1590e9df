"""Evidence about kernels for GPUs that are not here: what the compilers make of them.

One file per family lists the launches that it ships; `aot` compiles them and reads the code.
"""
