"""The one exception the builder's command line turns into a line on stderr and exit status 1."""


class BuildError(Exception):
    """Something the user can mend; the message says what was wrong, where, and what to do."""
