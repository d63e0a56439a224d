"""Passwords in URLs, blotted out of whatever is shown: errors, tables, logs."""

import re

_KEYS = (
    r"[\w-]*(?:password|passwd|passphrase|pass|pwd|token|secret|signature|sig|credential|auth|key)"
    r"|passfile"
)
_SUBSTITUTES = (
    # A user without a password is shown of a database of ours; elsewhere it may be a token.
    (
        re.compile(r"(?<![\w+.-])((?!postgres)[a-z][\w+.-]*://)[^/?#\s:]+@", re.IGNORECASE),
        r"\1***@",
    ),
    # Up to the last @ of the word: a password may hold a slash or an @ that should be escaped.
    # PASSWORD is how our own hints spell one.
    (re.compile(r"(://[^:/?#\s]*:)(?!PASSWORD@)\S*@"), r"\1***@"),
    (re.compile(rf"([?&;#](?:{_KEYS})=)[^&;\s]*", re.IGNORECASE), r"\1***"),
)


def blotted(text: str) -> str:
    """The text without the passwords and tokens of the URLs in it; the same when done again."""
    for pattern, substitute in _SUBSTITUTES:
        text = pattern.sub(substitute, text)
    return text
