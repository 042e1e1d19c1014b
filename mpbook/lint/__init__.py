"""Patterns in source code that the book has shown to fail, found without running anything.

``python -m mpbook lint train.py`` prints each with its line, the reason and the section of the book
that shows it.  The source is parsed, and neither imported nor run.

A rule fires on what the source shows: a mask of -1e9 where the file also uses float16, an ``eps``
beside a tensor that was cast.  What another file decides, it does not see.
"""

from mpbook.lint.check import RULES, lint_files, lint_text, table
from mpbook.lint.rule import Finding, Rule

__all__ = ["RULES", "Finding", "Rule", "lint_files", "lint_text", "table"]
