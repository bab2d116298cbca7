"""Training: the loop (loop.py), what it carries and saves (state.py), the 3-sigma clip (optim.py), the averaged
weights (ema.py), what stops a run that goes wrong (guard.py)."""
