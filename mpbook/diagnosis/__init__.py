"""One call that says what 16 bits will do to your own model, and where."""

from mpbook.diagnosis.diagnosing import diagnose
from mpbook.diagnosis.report import Diagnosis

__all__ = ["Diagnosis", "diagnose"]
