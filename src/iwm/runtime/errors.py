"""The exceptions a user is meant to read: a sentence each."""


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2, without a traceback."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run was saved; the sentence says how to go on."""
