"""What MkDocs is told beside mkdocs.yml: pages that lie outside `docs/`, and that the site fetches nothing."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Files of the repository by their name on the site. GitHub shows them where they are.
OUTSIDE = {
    "index.md": "README.md",
    "results.md": "RESULTS.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b(?![^>]*canonical)[^>]*"""
    r"""\bhref=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import"""
)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie outside `docs/`, and the pictures that they show."""
    from mkdocs.structure.files import File

    for name, path in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
        for _, _, target, _ in _LINK.findall((ROOT / path).read_text(encoding="utf-8")):
            picture = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if picture.endswith((".png", ".gif")) and not picture.startswith("docs/"):
                files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Leads links from where they point to in the repository to the same on the site."""
    name = page.file.src_uri
    source = OUTSIDE.get(name, f"docs/{name}")

    def relinked(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        names = {path: name for name, path in OUTSIDE.items()}
        if path.startswith("docs/"):
            found = path.removeprefix("docs/")
        elif path in names or mark:
            found = names.get(path, path)
        else:
            return text  # a file or folder that is no page
        return f"{mark}[{text}]({posixpath.relpath(found, posixpath.dirname(name) or '.')}{anchor or ''})"

    # Not in blocks of code.
    parts = re.split(r"(^ *```.*?^ *```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if index % 2 else _LINK.sub(relinked, part) for index, part in enumerate(parts))


def on_post_build(config: Any) -> None:
    """Refuses a site that fetches from another host."""
    from mkdocs.exceptions import PluginError

    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css") and (found := FETCHED.search(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path.relative_to(config.site_dir)} fetches from another host: {found.group()}")
