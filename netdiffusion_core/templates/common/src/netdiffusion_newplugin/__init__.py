"""
A plugin for NetDiffusion.
"""
