"""A comparison of methods on a benchmark as one page."""

from pathlib import Path
from typing import Any

from dpdm.evaluation import templates
from dpdm.files import write_atomically
from dpdm.privacy.accounting import upwards


def write_comparison(facts: dict[str, Any], output: Path) -> None:
    """Write the page of what `dpdm compare --methods` has found, wholly or not at all."""
    judged = [row for row in facts["rows"] if "scores" in row]
    headings = max((list(row["cells"]) for row in judged), key=len, default=[])
    page = templates("dpdm.report")
    page.filters["upwards"] = upwards
    text = page.get_template("comparison.html").render(facts=facts, judged=judged, headings=headings)
    write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))
