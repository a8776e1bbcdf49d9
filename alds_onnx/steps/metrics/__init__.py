"""The metrics: errors of weights, or errors of the outputs on calibration data."""
