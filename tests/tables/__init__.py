"""Tests of the table walks."""
