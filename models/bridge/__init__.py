"""Any Gymnasium environment, stepped in processes of its own.

:mod:`models.bridge.child` is the program of such a process; it and what it imports know neither torch nor the rest of
the core, so that a process starts quickly. :mod:`models.bridge.process` starts, asks and ends them.
"""
