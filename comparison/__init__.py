"""Several heads beside one another: what they reached, which one is better, and the report that shows it."""
