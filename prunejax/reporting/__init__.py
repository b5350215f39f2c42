"""Tables, figures and the report page, computed from records and summaries."""

from prunejax.reporting.figures import security_curves
from prunejax.reporting.page import page
from prunejax.reporting.table import comparison

__all__ = ["comparison", "page", "security_curves"]
