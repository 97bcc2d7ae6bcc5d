"""What mkdocstrings is told of this package's docstrings: the sections that are not Google's own."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

_SECTION = re.compile(r"^(Call arguments|Output|Reference):\n((?:    .*\n?|\n)+)", re.MULTILINE)


class Sections(griffe.Extension):
    """Shows `Call arguments`, what a layer returns, `Example` and `Reference` like other sections."""

    def on_instance(self, *, obj: griffe.Object, **others: Any) -> None:
        """Rewrites a docstring as Markdown that the parser leaves alone."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if obj.is_class:
            text = text.replace("\nReturns:\n", "\nOutput:\n")
        text = re.sub(r"^Example:\n", "**Example:**\n\n", text, flags=re.MULTILINE)
        obj.docstring.value = _SECTION.sub(_as_markdown, text)


def _as_markdown(section: re.Match[str]) -> str:
    title, body = section.group(1), dedent(section.group(2)).strip()
    # Entries begin where their section does.
    items = re.sub(r"^(?=\S)", "- ", body, flags=re.MULTILINE) if title == "Call arguments" else body
    return f"**{title}:**\n\n{items}\n\n"
