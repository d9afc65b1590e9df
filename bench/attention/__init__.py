"""Attention: prefill, decode, paged, ragged, backward; its threads, its memory, its sizes."""

from bench.attention import (
    backward,
    decode,
    forward,
    memory,
    paged,
    short,
    sweep,
    threads,
    varlen,
    window,
)

SECTIONS = (
    forward.SECTION,
    window.SECTION,
    short.SECTION,
    decode.SECTION,
    decode.GROUPS,
    paged.SECTION,
    varlen.SECTION,
    backward.SECTION,
    threads.SECTION,
    memory.SECTION,
    sweep.SECTION,
)
