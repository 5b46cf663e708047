"""Where the quota lives: each store makes one transition at a time atomic, and decides nothing."""
