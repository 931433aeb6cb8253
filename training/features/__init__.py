"""What the frozen backbone says of each view, computed once and kept."""
