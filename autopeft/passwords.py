"""Passwords in URLs, blotted out of whatever is shown: errors, tables, logs."""

import re

_KEYS = r"\w*(?:password|passwd|token|secret)|passfile"
_SUBSTITUTES = (
    # A user without a password is shown, but on the web it may be a token.
    (re.compile(r"(https?://)[^/?#\s:]+@"), r"\1***@"),
    # Up to the last @ of the word: a password may hold a slash or an @ that should be escaped.
    # PASSWORD is how our own hints spell one.
    (re.compile(r"(://[^:/?#\s]*:)(?!PASSWORD@)\S*@"), r"\1***@"),
    (re.compile(rf"([?&;](?:{_KEYS})=)[^&;\s]*", re.IGNORECASE), r"\1***"),
)


def blotted(text: str) -> str:
    """The text without the passwords and tokens of the URLs in it; the same when done again."""
    for pattern, substitute in _SUBSTITUTES:
        text = pattern.sub(substitute, text)
    return text
