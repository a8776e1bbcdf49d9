"""Model files: read, checked, written, and the numbers that lie in other files."""
