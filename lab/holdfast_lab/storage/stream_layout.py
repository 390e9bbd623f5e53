"""The on-disk structures of streamOptimized VMDK, shared by ``stream_encoder`` and ``-decoder``.

Header, 512 bytes, little endian; the footer has the same form:

    offset  size  field
         0     4  magic "KDMV"
         4     4  version, 3 (1 is refused, as ESXi's import does)
         8     4  flags: 1 newline test, 0x10000 compressed grains, 0x20000 markers
        12     8  capacity, sectors
        20     8  sectors per grain, 128
        28     8  sector of the embedded descriptor, 1
        36     8  its size in sectors, 20
        44     4  entries per grain table, 512
        48     8  sector of the redundant directory, 0
        56     8  sector of the grain directory; all ones = see the footer
        64     8  sectors before the first marker
        72     1  unclean shutdown
        73     4  newline test: LF, space, CR, LF
        77     2  compression, 1 = deflate (with zlib's head and checksum)

Then markers on sector boundaries. A grain: sector of the disk (8 bytes), size (4), compressed
data. Others, 512 bytes: sectors that follow (8), size 0 (4), type (4).
"""

from __future__ import annotations

import struct

SECTOR_BYTES = 512
HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
MAGIC = b"KDMV"
VERSION = 3
FLAG_NEWLINES = 0x1
FLAG_COMPRESSED = 0x10000
FLAG_MARKERS = 0x20000
NEWLINES = b"\n \r\n"
DEFLATE = 1
GRAIN_SECTORS = 128
GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES
TABLE_ENTRIES = 512
TABLE_BYTES = TABLE_ENTRIES * 4
DESCRIPTOR_SECTOR = 1
DESCRIPTOR_SECTORS = 20
OVERHEAD_SECTORS = 128
DIRECTORY_AT_END = 0xFFFFFFFFFFFFFFFF

MARKER = struct.Struct("<QII496x")
GRAIN_MARKER = struct.Struct("<QI")
MARKER_END = 0
MARKER_TABLE = 1
MARKER_DIRECTORY = 2
MARKER_FOOTER = 3
