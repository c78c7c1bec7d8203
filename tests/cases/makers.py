"""Makes the input files of cases: each function gets a folder and returns the path of the file that it made there."""

from __future__ import annotations
