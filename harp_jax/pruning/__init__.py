"""The pruning core of HARP: rates, scores, masks, budgets. Pure functions on arrays and trees."""
