"""A deterministic simulation of the whole client, from one seed.

The real ``SendsClient``, batch, limiter, retry and quota rule run on a loop with virtual time, over
a network, a store and a Braze of the simulation's own. ``python -m tests.simulation --seed N``
prints the timeline of one run. The idea is FoundationDB's:
https://apple.github.io/foundationdb/testing.html
"""
