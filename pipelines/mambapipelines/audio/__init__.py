"""Training on recordings: options, data, loss, ``mambaaudio fit``."""
