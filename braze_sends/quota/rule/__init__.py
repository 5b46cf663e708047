"""The quota rule. Pure: no clock, no randomness, no I/O."""
