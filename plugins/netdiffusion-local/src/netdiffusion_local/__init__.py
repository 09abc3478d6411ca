"""
The executor ``local``: processes on this machine.
"""
