"""Exercises that diagnose: `check` finds the smallest counterexample and names the misconception.

An exercise is data: the inputs to try, smallest first, the right answer for each, and the wrong
answers that a known misconception would give.  `check` runs the reader's function over the inputs;
at the first difference it shows the input, both answers, and, where the reader's answer is the one
that a misconception predicts, says which.

The exercises of a chapter are the dict ``EXERCISES`` in the module here that is named after it.
"""

from mpbook.exercises._checking import Answer, Exercise, check, find

__all__ = ["Answer", "Exercise", "check", "find"]
