"""Calibration data: reading it, and observing models on it."""
