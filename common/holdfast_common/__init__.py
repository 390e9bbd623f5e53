"""What controller and agents share: errors, formats, the block path, the repository, trust and the wire."""

import os

# gRPC reads this once, when it is loaded, so it stands in the first module of ours that anybody
# imports. Our certificates are ECDSA: the one suite named here needs RSA, so nothing is left of
# TLS 1.2, and TLS 1.3 (whose suites this does not touch) is all that remains.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
