"""The report as one HTML page: the table and the curves."""

import base64
import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import matplotlib.figure

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{{stylesheet}}</style></head>
<body><h1>{title}</h1><pre>{{code}}</pre>
<img src="data:image/png;base64,{image}" alt="security curves">
<p>{note}</p></body>
</html>
"""


def page(title: str, table: Table, figure: "matplotlib.figure.Figure", note: str) -> str:
    """A page that stands alone: its picture is inside it.

    Args:
      title: its heading.
      table: from `reporting.comparison`.
      figure: from `reporting.security_curves`.
      note: a paragraph below them.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table)
    image = base64.b64encode(picture.getvalue()).decode()
    return console.export_html(code_format=_PAGE.format(title=title, image=image, note=note))
