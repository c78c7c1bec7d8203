"""Tests of the codec, against the Arm ARM as transcribed by hand and against values a kernel computed."""
