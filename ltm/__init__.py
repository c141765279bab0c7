"""The contract, the machinery every model shares, and the Latent Thought Model itself.

Deliberately empty: the lm-eval start-up hook imports this package in every interpreter.
"""
