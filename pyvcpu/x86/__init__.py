"""The x86 processor as data and pure functions: control-register flags, segments, starting states."""
