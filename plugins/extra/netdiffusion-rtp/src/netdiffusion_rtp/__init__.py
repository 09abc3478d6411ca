"""
Rules of the Real-time Transport Protocol and of its control protocol.
"""
