"""What the error of a layer means: that of its weight, or that of the model on data."""
