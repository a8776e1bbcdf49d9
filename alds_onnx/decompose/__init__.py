"""One layer at a time, in NumPy and SciPy: folding, spectra, factors."""
