"""Reading calibration data."""
