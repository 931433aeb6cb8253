"""The dataset check: every file decoded once, and everything that is wrong told before the first step."""
