"""Whole models, from their files, beside the programs that people run today."""

from bench.models import gemma, gpt2, load, minilm, optimize, overhead

SECTIONS = (
    gemma.SECTION,
    gpt2.SECTION,
    minilm.SECTION,
    optimize.GEMMA,
    optimize.LLAMA,
    overhead.SECTION,
    load.SECTION,
)
