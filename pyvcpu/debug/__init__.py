"""Debugging a machine: breakpoints, watchpoints and single steps, for Python functions and for debuggers."""
