"""What controller and agents share: errors, formats, the block path, the repository, trust and the wire."""

import os
import sys
from typing import Final

# gRPC reads this once, when it is loaded, so it stands in the first module of ours that anybody
# imports (the packages of agent and controller import this one before all else). Our certificates
# are ECDSA: the one suite named here needs RSA, so nothing is left of TLS 1.2, and TLS 1.3 (whose
# suites this does not touch) is all that remains.
_CIPHER_SUITES: Final = "ECDHE-RSA-AES256-GCM-SHA384"

if "grpc" in sys.modules and os.environ.get("GRPC_SSL_CIPHER_SUITES") != _CIPHER_SUITES:
    raise ImportError("import holdfast_common before grpc: else connections may fall to TLS 1.2")
os.environ["GRPC_SSL_CIPHER_SUITES"] = _CIPHER_SUITES
