"""What others wrote, made harmless for an operator's terminal."""


def printable(text: str) -> str:
    """`text` in one line, without anything that a terminal could obey.

    Control characters (those above U+0080 as well), line ends, marks that turn or hide text, and
    characters without a width are replaced one by one, so that it is seen that something was there.
    """
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
