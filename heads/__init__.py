"""Everything trainable: adapters (Features -> Pyramid) and heads (Pyramid -> outputs, losses, predictions)."""
