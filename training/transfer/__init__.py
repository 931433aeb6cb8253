"""`--init-head`: beginning with the weights of a head that was trained before, here or elsewhere.

One file a source turns its names into ours; fit.py puts the tensors into the model and says what became of each.
"""
