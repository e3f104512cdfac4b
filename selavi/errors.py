"""The one exception that a user is meant to read."""


class SelaviError(Exception):
    """A mistake in the input or the environment, told in one line.

    The message names the offending value and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """
