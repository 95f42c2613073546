"""SE(3), SO(3) and the circle: pure functions on tensors."""
