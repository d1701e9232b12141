"""One module a verb of ``mambabio``; each has ``main(argv, prog) -> exit code``."""
