"""Requests as they were seen elsewhere: reading the public trace formats, and shaping them."""
