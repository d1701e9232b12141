"""The two kinds of error that a command line tells apart."""


class DataError(ValueError):
    """What was read is wrong: a file, a record, a row. Command lines exit with 1."""


class UsageError(ValueError):
    """What was asked for is wrong: an argument, an option, a configuration. Exit code 2."""
