"""What can stop a benchmark."""


class NotHereError(Exception):
    """Something that is needed is not on this machine; the message says what."""
