"""A finished run as one page that a data owner, a reviewer and a lawyer can read, and the same as JSON."""

from dpdm.report.comparison import write_comparison
from dpdm.report.facts import gather
from dpdm.report.page import render, write_report

__all__ = ["gather", "render", "write_comparison", "write_report"]
