"""SAEs of other tools, read and written without those tools: sae-lens, sparsify, dictionary_learning, Gemma Scope.

A format is a value in `formats.FORMATS`: what tells its folder from the others, and what is made of its files.
"""

from saelib.interop.formats import read, recognise, write
from saelib.interop.found import Found

__all__ = ["Found", "read", "recognise", "write"]
