"""
The executor ``ray``: a Ray cluster of any number of machines.
"""
