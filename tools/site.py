"""
Hook of MkDocs: what the pages link to outside of docs/, such as a README, is on no page of the site; its name stays.
"""

from __future__ import annotations

import re
from posixpath import dirname, join, normpath
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """
    Return the page without links that leave the documentation.
    """

    def kept(link: re.Match[str]) -> str:
        elsewhere = re.match(r"\w+:|#", link[2])
        inside = elsewhere or not normpath(join(dirname(page.file.src_uri), link[2])).startswith("..")
        return link[0] if inside else link[1]

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", kept, markdown)
