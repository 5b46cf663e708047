"""Listeners for ``SendsClient(on_event=…)`` that need a library of their own."""
