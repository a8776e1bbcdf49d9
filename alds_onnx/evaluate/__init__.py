"""Running the original and the compressed model side by side."""
