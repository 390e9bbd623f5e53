"""Who is who: our own certificate authority, join tokens, and the TLS of every connection.

Identity is the URI in a certificate that our authority signed, and nothing else. TLS 1.3 only:
see ``holdfast_common/__init__.py`` for how gRPC is held to that.
"""
