"""Numerics on plain arrays: singular values, truncated SVDs, regression from moments."""
