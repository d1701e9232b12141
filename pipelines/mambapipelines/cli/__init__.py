"""Lightning pipelines and the command lines."""
