"""Fuzzing: one target for each parser and each boundary at which something not trusted comes in.

`targets` says what is fed to what, and which errors may come out; `engine` feeds one target, by atheris where it
installs and by Hypothesis elsewhere; ``python -m tests.fuzz`` runs all of them for as long as wanted.
"""
