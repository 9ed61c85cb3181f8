"""The error of files of networks."""


class FileError(ValueError):
    """Raised for a file of a network that cannot be written or read; the message is one line."""


def one_line(error: BaseException) -> str:
    """Returns what an error says, in one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
