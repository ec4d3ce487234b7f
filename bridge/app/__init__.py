"""Composition: what is made of what, how it starts, how it ends."""
