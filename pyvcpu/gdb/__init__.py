"""The debugger's side of a machine: a server of the GDB remote protocol, for gdb and lldb.

It sees the machine through one interface, target.Target. Server (server.py) is a thread with a socket, Session
(session.py) one connection without it, commands.py the table of requests. state.py, running.py, documents.py, lldb.py
and monitor.py serve them; packets.py, arguments.py and registers.py are pure.
"""
