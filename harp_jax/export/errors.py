"""What is wrong with a file of a network."""


class FileError(ValueError):
    """Raised for a file of a network that cannot be written or read; the message is one line."""
