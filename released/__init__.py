"""Heads that others released, under our names, and models of them."""
