"""Whole models, from their files, beside the programs that people run today."""

from bench.models import gemma, gpt2

SECTIONS = (gemma.SECTION, gpt2.SECTION)
