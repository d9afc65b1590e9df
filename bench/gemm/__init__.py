"""Matrix products: large, skinny, small and batched, fused, backward, and over known models."""

from bench.gemm import batched, epilogue, fused, gradient, linear, models, rows, threads

SECTIONS = (
    linear.LARGE,
    linear.SKINNY,
    fused.SECTION,
    epilogue.SECTION,
    gradient.SECTION,
    batched.SECTION,
    linear.SMALL,
    threads.SECTION,
    models.SECTION,
    rows.SECTION,
)
