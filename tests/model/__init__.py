"""Tests of the model by itself: against an abstract map, against the facts."""
