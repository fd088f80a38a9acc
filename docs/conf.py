"""Sphinx's settings: `make docs` builds the site into docs/_build/html."""

import re
from typing import Any

import dpdm

project = "dpdm"
author = "the dpdm contributors"
version = release = dpdm.__version__
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"dpdm {release}"
html_show_sphinx = False
html_extra_path = ["attacker.html"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes of jaxtyping are for readers of the code
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
napoleon_custom_sections = ["Guarantees", "Privacy", "Source"]

_BACKTICKS = re.compile(r"(?<!`)`([^`\n]+)`(?!`)(\w*)")


def literal(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ANN401
    """Read what docstrings have in single backticks as code: `name`s too."""
    lines[:] = [_BACKTICKS.sub(lambda m: f"``{m[1]}``" + (rf"\ {m[2]}" if m[2] else ""), line) for line in lines]


def without_private_bases(app: Any, name: str, obj: Any, options: Any, bases: list[Any]) -> None:  # noqa: ANN401
    """Show no bases that have no page."""
    bases[:] = [base for base in bases if base.__module__ == "builtins" and base is not object]


def from_the_root(app: Any, relative: Any, parent: str, content: list[str]) -> None:  # noqa: ANN401
    """Turn links of the files at the root, which are included here, into links of this folder."""
    text = content[0]
    for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"):
        text = text.replace(f"({name}.md)", f"({name.lower()}.md)")
    content[0] = text.replace("(docs/", "(")


def setup(app: Any) -> None:  # noqa: ANN401
    """Register the above."""
    app.connect("autodoc-process-docstring", literal)
    app.connect("autodoc-process-bases", without_private_bases)
    app.connect("include-read", from_the_root)
