"""Prose from Python source: the sentences that people wrote in docstrings, without the markup.

Source is parsed with `ast` and never imported. Only what stands before a docstring's first section
is read: parameter tables, doctests, lists and literal blocks are left out.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

MIN_WORDS, MAX_WORDS = 12, 40
"""Words of a passage: one short sentence rarely tells its library, a long text trains slowly."""

_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_SECTION = re.compile(
    r"\s*(args|arguments|parameters|params|keyword arg\w*|other parameters|returns?|yields?"
    r"|raises|warns|examples?|example usage|usage|notes?|warnings?|references|see also"
    r"|attributes|methods|inputs?|outputs?|shape|todo)\s*(:.*)?$",
    re.IGNORECASE,
)
_BREAK = re.compile(r"""\s*([-=~^"]{3,}\s*$|:\w+|\.\. |@\w+)""")
_NOT_PROSE = re.compile(r"[\s>*+#|.-]|\d+[.)] ")
_ROLE = re.compile(r":[\w:.+-]+:`[~!.]*([^`<]*?)(?:\s*<[^>]*>)?`")
_NAMED_LINK = re.compile(r"`([^`<]+?)\s*<[^>]*>`_+")
_MARKDOWN_LINK = re.compile(r"\[`?([^\]`]+)`?\]\([^)]*\)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][^{}=<>\\_]*[a-z)]\.")


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a source file; none where this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    open_nodes: list[_Documented] = [tree]
    while open_nodes:
        node = open_nodes.pop()
        text = ast.get_docstring(node)
        if text:
            yield text
        # Bodies alone: a walk through every expression takes longer than the parsing.
        open_nodes += [child for child in node.body if isinstance(child, _Documented)]


def sentences(docstring: str) -> Iterator[str]:
    """Plain sentences of the paragraphs before the first section, in order."""
    for lines in _paragraphs(docstring):
        is_code = any(mark in line for line in lines for mark in (">>>", "::", "|"))
        if is_code or _NOT_PROSE.match(lines[0]):
            continue
        for sentence in _SENTENCE_END.split(_plain(" ".join(lines))):
            if _SENTENCE.fullmatch(sentence) and 4 <= len(sentence.split()) <= MAX_WORDS:
                yield sentence


def passages(sentences: Iterator[str]) -> Iterator[str]:
    """Neighbouring sentences joined to passages of `MIN_WORDS` to `MAX_WORDS` words."""
    joined: list[str] = []
    n_words = 0
    for sentence in sentences:
        length = len(sentence.split())
        if n_words + length > MAX_WORDS:
            joined, n_words = [], 0
        joined.append(sentence)
        n_words += length
        if n_words >= MIN_WORDS:
            yield " ".join(joined)
            joined, n_words = [], 0


def _paragraphs(docstring: str) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in docstring.splitlines():
        if _SECTION.match(line) or _BREAK.match(line):
            break
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def _plain(text: str) -> str:
    """The text without reStructuredText and Markdown markup, on one line."""
    text = _ROLE.sub(lambda match: match[1].rsplit(".", 1)[-1], text)
    text = _NAMED_LINK.sub(r"\1", text)
    text = _MARKDOWN_LINK.sub(r"\1", text)
    return " ".join(re.sub(r"[`*]+", "", text).split())
