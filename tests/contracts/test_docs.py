"""The documents: every relative link leads somewhere, every Python block is Python."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest
from architecture import REPOSITORY, repository_files

DOCUMENTS = [path for path in repository_files() if path.suffix == ".md"]
_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>\w*)[^\n]*\n(?P<body>.*?)^[ \t]*(?P=mark)[ \t]*$",
    re.M | re.S,
)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^\s{0,3}\[[^\]]+\]:\s*(\S+)", re.M)
_HTML = re.compile(r"""(?:src|srcset|href)=["']([^"']+)["']""")


def links(text: str) -> list[str]:
    """The relative targets of a document's links and pictures, without their #anchors; code is left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    found = [target for pattern in (_LINK, _REFERENCE, _HTML) for target in pattern.findall(prose)]
    relative = [target.split("#")[0].split("?")[0] for target in found if not re.match(r"[a-zA-Z][\w+.-]*:|//", target)]
    return [target for target in relative if target]


def broken_links(document: Path, text: str) -> list[str]:
    """Links of a document that lead nowhere, or out of the repository."""
    return [
        target
        for target in links(text)
        if not (path := (document.parent / target).resolve()).exists() or not path.is_relative_to(REPOSITORY)
    ]


def python_blocks(text: str) -> list[str]:
    """The bodies of a document's fenced Python blocks, without their indentation."""
    return [textwrap.dedent(m["body"]) for m in _FENCE.finditer(text) if m["language"] in ("python", "py")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_documents(document: Path) -> None:
    text = document.read_text("utf-8")
    assert not broken_links(document, text)
    for block in python_blocks(text):
        ast.parse(block)


def test_there_is_a_readme() -> None:
    assert REPOSITORY / "README.md" in DOCUMENTS


def test_a_broken_link_is_found() -> None:
    document = REPOSITORY / "docs" / "method.md"
    text = """
See [one](nowhere.md#part), ![two](figures/none.png "title"), [three][ref], <img src="none.svg"> and
[fine](../pyproject.toml#project), [here](#symbols), [web](https://example.org/x.md), `[code](code.md)`.

```md
[fenced](fenced.md)
```

[ref]: ../nothing.md
"""
    assert sorted(broken_links(document, text)) == ["../nothing.md", "figures/none.png", "none.svg", "nowhere.md"]
    assert broken_links(document, "[outside](../../elsewhere)") == ["../../elsewhere"]
    assert broken_links(document, "[outside](../..)") == ["../.."]


def test_python_blocks_are_found() -> None:
    text = "1. first\n\n   ```python\n   x = 1\n   ```\n\n~~~py\ny = (\n~~~\n\n```sh\nmake\n```\n"
    assert python_blocks(text) == ["x = 1\n", "y = (\n"]
    with pytest.raises(SyntaxError):
        ast.parse(python_blocks(text)[1])
