"""The one kind of error that users see."""



class MinidsError(ValueError):
    """A mistake of the input, told in one message: what was expected, what was found, what to do."""
