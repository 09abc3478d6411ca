"""
Rules of the Domain Name System: messages, and conversations of questions and answers.
"""
