"""The one exception for what a user can mend."""


class StabilityError(Exception):
    """Something outside the program is wrong. The message says what, where, and the mend; no traceback is shown."""


class Interrupted(Exception):
    """The trial was asked to stop and has written its checkpoint. The message says how to go on."""
