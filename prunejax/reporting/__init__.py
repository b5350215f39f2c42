"""Tables, figures and the report page, computed from records and summaries."""

from prunejax.reporting.costs import cost_figure, cost_table
from prunejax.reporting.figures import security_curves
from prunejax.reporting.page import page
from prunejax.reporting.table import comparison

__all__ = ["comparison", "cost_figure", "cost_table", "page", "security_curves"]
