"""Every image experiment of the paper: one module each, with one `run(work, options) -> dict`.

`igebm eval NAME MODEL` calls them; settings.py holds their options, work.py what they share.
"""
