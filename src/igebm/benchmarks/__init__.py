"""How fast this machine runs it: `igebm bench` (speed.py), beside a plain reference implementation (reference.py)."""
