"""
Rules of the Internet protocols: IPv4, IPv6, TCP, UDP, ICMP, and what holds between the packets of a flow.
"""
