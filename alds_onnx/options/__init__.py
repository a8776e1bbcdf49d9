"""The options of the command and of the Python functions, each declared once."""
