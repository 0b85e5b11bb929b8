"""The one kind of error that users see."""


class MinidsError(ValueError):
    """Invalid input; the message says what was expected, what was found, and what to do."""
