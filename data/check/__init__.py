"""The dataset check: every file decoded once, and everything that is wrong reported before the first step."""
