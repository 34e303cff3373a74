"""Names from files and links as texts: Streamlit reads most of its texts as Markdown, plotly as HTML."""

from __future__ import annotations

import html
import re

_MARKS = re.compile(r"[\\`*~$\[\]<>&]|:(?=[\w+-])|(?<![^\W_])_|_(?![^\W_])")
# What is replaced in a text after Markdown was read, where a backslash no longer counts: links, emoji, dashes, arrows;
# and what begins a list or a heading.
_SEAMS = re.compile(
    r"(?<=:)(?=//|[\w+/-]+:)|(?<=www)(?=\.)|(?<=@)|(?<!\S)(?=(?:\\?<-\\?>|-\\?>|\\?<-|--|\\?[<>~]=)(?!\S))"
    r"|^(?=(?:[-+]|#+|\d+[.)])(?:\s|$)|--|[=|])",
    re.IGNORECASE,
)
_JOINER = "\N{WORD JOINER}"  # not seen


def plain(text: object) -> str:
    r"""A text that Markdown shows as it is: no pictures, links, directives or formulas come of what is in it.

    Args:
        text: Such as the name of a class or a file, or an error; several lines become one.

    Example:
        >>> print(plain("*a* ![b](c) :red[d] e_f"))
        \*a\* !\[b\](c) \:red\[d\] e_f
    """
    escaped = _MARKS.sub(r"\\\g<0>", " ".join(str(text).split()))
    return _SEAMS.sub(_JOINER, escaped)


def chart_text(text: object) -> str:
    """A text that plotly shows as it is.

    Args:
        text: Such as the name of a class.

    Example:
        >>> chart_text("<b>a</b>")
        '&lt;b&gt;a&lt;/b&gt;'
    """
    return html.escape(str(text), quote=False)
