"""The exception for mistakes that the user can fix, and how messages quote and count."""


class InputError(ValueError):
    """A mistake in what the user provided.

    The message is one line (or a short list) that names the file, the line if there is one, and the remedy;
    command lines print it and exit with status 2. It may quote untrusted files: control characters, which a
    terminal would obey, are replaced by Python's escapes.
    """

    def __init__(self, message: str):
        super().__init__(visible(message))


def visible(text: str) -> str:
    """Return the text with Python's escapes in place of all that is not printable, but for line breaks.

    >>> print(visible("red\\x1b[31m"))
    red\\x1b[31m
    """
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def shown(value: object, width: int = 100) -> str:
    """Return a value as a message may quote it: its repr, cut after `width` characters.

    A repr is on one line and has no control characters.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a structure of many levels
        text = f"{type(value).__name__} too long to be shown"
    return text if len(text) <= width else f"{text[:width]}..."


def short_line(reason: object, width: int = 300) -> str:
    """Return another library's message on one line, cut after `width` characters.

    If the message is empty, return the name of the error's type.

    >>> short_line(OSError("no\\n  space")), short_line(KeyError())
    ('no space', 'KeyError')
    """
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= width else f"{text[:width]}..."


def counted(number: int, noun: str) -> str:
    """Return a number with what it counts.

    >>> counted(1, "epoch"), counted(2000, "update")
    ('1 epoch', '2,000 updates')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
