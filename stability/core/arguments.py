"""Arguments of commands that more than one command takes."""

from argparse import ArgumentTypeError


def count(text: str) -> int:
    """Read a whole number of 1 or more, as the type of an argument.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: give a whole number of 1 or more.")
    return int(text)
