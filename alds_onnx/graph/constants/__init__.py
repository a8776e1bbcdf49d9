"""Tensors that depend on constants only: their numbers, their readers, and who counts them."""
