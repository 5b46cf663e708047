"""The quota: the rule (``bucket``), who waits for it (``limiter``), where it lives (``store``)."""
