"""Pictures: sample grids and figures (plots.py)."""
