"""The one exception for what a user can mend."""


class StabilityError(Exception):
    """Something outside the program is wrong. The message says what, where, and the mend; no traceback is shown."""
