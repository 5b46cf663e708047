"""Deliberate faults in the rule, the limiter and the create: each has to be noticed.

``faults`` has the faults, ``python -m tests.mutants`` applies each of them in a copy of the package
and runs what is expected to notice it.
"""
