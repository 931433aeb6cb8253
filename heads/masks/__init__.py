"""What all heads share that give an image a set of masks with a class each: base class, loss, results."""
