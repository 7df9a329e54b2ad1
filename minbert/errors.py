"""The one exception that is the user's to mend, and how a message shows what stood in a file."""


class InputError(ValueError):
    """A mistake in what the user gave. The message is one line (or a short list) that names the file, the
    line where there is one, and the remedy; command lines print it and exit with status 2. It may quote what
    others wrote: control characters, which a terminal would obey, stand in it as Python writes them."""

    def __init__(self, message: str):
        super().__init__("".join(_visible(character) for character in message))


def _visible(character: str) -> str:
    return character if character.isprintable() or character == "\n" else ascii(character)[1:-1]


def shown(value: object, width: int = 100) -> str:
    """A value as a message may hold it: as Python writes it, so on one line and without control characters,
    and cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a structure of many levels
        text = f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= width else f"{text[:width]}..."


def short_line(reason: object, width: int = 300) -> str:
    """Another library's message on one line, cut where it is long; an error's name where it says nothing."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= width else f"{text[:width]}..."
