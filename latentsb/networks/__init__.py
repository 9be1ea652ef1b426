"""Networks: what maps states, times and conditions to predictions."""
