"""The commands: their options, and what each does. Only options are imported with a module."""
