"""Networks: layers (layers.py), Figures 14a and 14b (image.py), 14c (trajectory.py), the twin that is sampled
(fold.py)."""
