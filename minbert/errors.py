"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """A mistake in what the user gave. The message is one line (or a short list) that names the file, the
    line where there is one, and the remedy; command lines print it and exit with status 2."""
