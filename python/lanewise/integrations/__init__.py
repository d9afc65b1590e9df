"""Doors into other people's programs: torch, transformers, peft."""
