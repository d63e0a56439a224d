"""What a study may be called: its name is part of commands, file names and URLs."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Letters, digits, `.`, `_` and `-`; the whole name matches, so none leaves its folder."""
