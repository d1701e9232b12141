"""The verbs of ``mambaaudio``, imported when they are used."""
