"""The error of files of networks."""

from harp_jax.names import printable


class FileError(ValueError):
    """Raised for a file of a network that cannot be written or read; the message is one line."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def one_line(error: BaseException) -> str:
    """Returns what an error says, in one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
