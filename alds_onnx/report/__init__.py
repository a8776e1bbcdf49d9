"""Presenting the results of a run to people and to programs."""
