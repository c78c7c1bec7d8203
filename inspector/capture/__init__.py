"""One instant of a host, frozen: what is in it, its file, and how it is taken.

Everything is judged from a capture, never from the live machine.
"""
