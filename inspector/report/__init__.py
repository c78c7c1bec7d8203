"""Shows captures and findings: as text for people, as JSON for programs.

Knows what to say and how, and decides nothing: tables come from `inspector.capture.view`, verdicts are findings.
"""
