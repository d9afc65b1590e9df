"""Small benches of every family, run by ``python -m bench`` from the root of the repository."""
