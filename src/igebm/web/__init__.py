"""The page to play with: work.py computes, drawing.py draws, page.py lays out, server.py opens and closes."""
