"""Input that is nearly right, made by its structure: headers, bodies, rows and records of a store.

Random text seldom gets past the first check. These strategies build what Braze, an operator or a
store gives, and damage it in a few places.
"""
