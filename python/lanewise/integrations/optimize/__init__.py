"""Replaces the layers of a transformers model by lanewise's, in place."""
