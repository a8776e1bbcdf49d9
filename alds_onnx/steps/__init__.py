"""The steps of a run, each a function from values to values."""
