from pathlib import Path

from autopeft.training.data.prose import docstrings, passages, sentences

NUMPY_STYLE = """Return the mean of :class:`~pandas.core.Values`, see ``axis``.

Missing values are left out
unless told otherwise. See `the guide <https://example.org>`_ for more.

>>> mean([1, 2])
1.5

- a list item that is not prose at all.

Parameters
----------
x : array
    The values of which the mean is taken.
"""


def test_sentences_stand_before_the_first_section_and_carry_no_markup() -> None:
    assert list(sentences(NUMPY_STYLE)) == [
        "Return the mean of Values, see axis.",
        "Missing values are left out unless told otherwise.",
        "See the guide for more.",
    ]


def test_every_docstring_style_ends_at_its_table() -> None:
    for section in ("Args:\n    x: It.", ":param x: It.", "Returns: the thing.", ".. note:: It."):
        text = f"Do the thing at once.\n{section}\n\nNever read this sentence here."
        assert list(sentences(text)) == ["Do the thing at once."]


def test_passages_join_neighbours_to_the_wanted_length() -> None:
    short = "Five words make this one."
    long = " ".join(["Word", *["word"] * 37, "end."])
    assert list(passages(iter([short, short, short, short]))) == [" ".join([short] * 3)]
    assert list(passages(iter([short, long]))) == [long]


def test_docstrings_are_parsed_and_never_imported(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Of the module."""\nraise SystemExit\n'
        'class A:\n    """Of the class, with an invalid escape \\d."""\n'
        '    def f(self):\n        """Of the method."""\n'
    )
    assert set(docstrings(path)) == {
        "Of the module.",
        "Of the class, with an invalid escape \\d.",
        "Of the method.",
    }
    path.write_text("def broken(:\n")
    assert list(docstrings(path)) == []
