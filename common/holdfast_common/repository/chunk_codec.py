"""Between frames and packs: compress and seal a blob; open, decompress and check it.

One thread owns a `SegmentSealer` and with it a segment key, so a nonce is never used twice. A blob is
stored compressed only if that is shorter, so its two lengths tell how it is stored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository.forgetting import overwrite, overwrite_ends
from holdfast_common.repository.key_sets import WriterKeys, segment_info
from holdfast_common.repository.layout import (
    ALGORITHM,
    FORMAT_VERSION,
    ID_BYTES,
    KEY_BYTES,
    TAG_BYTES,
    WRAPPED_KEY_BYTES,
    BlobKind,
)
from holdfast_common.repository.randomness import Randomness
from holdfast_common.units import MIB

# magic 8 | format u16 | algorithm u8 | zero u8 | content epoch u32 | repository 16 | domain 16 | origin 16
# | wrapped key 80
SEGMENT_HEADER: Final = struct.Struct(f"<8sHBBI16s16s16s{WRAPPED_KEY_BYTES}s")
_MAGIC: Final = b"HFSEGMNT"
# format u16 | algorithm u8 | kind u8 | repository 16 | domain 16 | origin 16 | number u32 | chunk id 32 | plain u32
_ASSOCIATED: Final = struct.Struct("<HBB16s16s16sI32sI")
PLAIN_BYTES_MAX: Final = (
    16 * MIB
)  # no kind of blob is longer; bounds what a hostile pack can make us allocate
# zstd's own parameters suit long inputs. For a frame, tables that stay in a core's own cache find as much
# when matches may be shorter: measured on 1 MiB of disk each, level 3 takes 0.2 % more room and a quarter
# less time than zstd's, level 1 takes 1.4 % less room and 2 % more time.
_PARAMETERS: Final = {
    3: zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_DFAST, window_log=20, chain_log=14, hash_log=15, search_log=1,
        min_match=4, target_length=0, write_content_size=True,
    ),
    1: zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST, window_log=20, chain_log=14, hash_log=14, search_log=1,
        min_match=6, target_length=0, write_content_size=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """The plain start of a pack segment; it stays as it is when the segment is moved to another pack."""

    repository_id: bytes
    domain_id: bytes
    origin_id: bytes
    content_epoch: int
    wrapped_key: bytes

    def encode(self) -> bytes:
        """The header's bytes."""
        return SEGMENT_HEADER.pack(
            _MAGIC, FORMAT_VERSION, ALGORITHM, 0, self.content_epoch, self.repository_id, self.domain_id,
            self.origin_id, self.wrapped_key,
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes | memoryview, offset: int = 0) -> SegmentHeader:
        """Raises: FormatError."""
        if len(data) - offset < SEGMENT_HEADER.size:
            raise IntegrityError("a pack segment ends in its header")
        magic, version, algorithm, zero, epoch, repository, domain, origin, wrapped = (
            SEGMENT_HEADER.unpack_from(data, offset)
        )
        if magic != _MAGIC or zero != 0:
            raise IntegrityError("not a pack segment")
        if version != FORMAT_VERSION or algorithm != ALGORITHM:
            raise FormatError(
                "unknown format of a pack segment", format=version, algorithm=algorithm
            )
        return cls(
            repository_id=repository,
            domain_id=domain,
            origin_id=origin,
            content_epoch=epoch,
            wrapped_key=wrapped,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobBinding:
    """What a blob's associated data holds besides repository and domain."""

    kind: BlobKind
    origin_id: bytes
    number: int
    chunk_id: bytes
    plain_length: int

    def associated(self, *, repository_id: bytes, domain_id: bytes) -> bytes:
        """The associated data."""
        return _ASSOCIATED.pack(
            FORMAT_VERSION, ALGORITHM, self.kind, repository_id, domain_id, self.origin_id, self.number,
            self.chunk_id, self.plain_length,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SegmentCipher:
    """Seals and opens the blobs of one segment."""

    repository_id: bytes
    domain_id: bytes
    cipher: AESGCM = field(repr=False)

    def seal_into(
        self, payload: bytes | memoryview, binding: BlobBinding, target: memoryview
    ) -> None:
        """``target`` is 16 bytes longer than ``payload``."""
        self.cipher.encrypt_into(
            binding.number.to_bytes(12, "big"), payload, self._associated(binding), target
        )

    def open_into(
        self, stored: bytes | memoryview, binding: BlobBinding, target: memoryview
    ) -> None:
        """``target`` is 16 bytes shorter than ``stored``. Raises: IntegrityError."""
        try:
            self.cipher.decrypt_into(
                binding.number.to_bytes(12, "big"), stored, self._associated(binding), target
            )
        except InvalidTag as error:
            raise IntegrityError(
                "a blob was damaged or forged",
                origin=binding.origin_id.hex(),
                number=binding.number,
            ) from error

    def _associated(self, binding: BlobBinding) -> bytes:
        return binding.associated(repository_id=self.repository_id, domain_id=self.domain_id)


class SegmentSealer:
    """A new segment: its header, its key, and the number of its next blob. One thread."""

    def __init__(self, keys: WriterKeys, randomness: Randomness) -> None:
        reader = keys.reader
        segment_key = randomness.draw(KEY_BYTES)
        origin_id = randomness.draw(ID_BYTES)
        info = segment_info(
            repository_id=reader.repository_id,
            domain_id=reader.domain_id,
            origin_id=origin_id,
            epoch=keys.content_epoch,
        )
        self.header = SegmentHeader(
            repository_id=reader.repository_id,
            domain_id=reader.domain_id,
            origin_id=origin_id,
            content_epoch=keys.content_epoch,
            wrapped_key=randomness.seal_to(keys.content_public, plain=segment_key, info=info),
        )
        self.cipher = segment_cipher(self.header, segment_key)
        overwrite(segment_key)  # or a proxy that is taken over later would still find it
        self._number = 0

    def next_binding(self, *, kind: BlobKind, chunk_id: bytes, plain_length: int) -> BlobBinding:
        """Take the next number; it is never given again."""
        binding = BlobBinding(
            kind=kind,
            origin_id=self.header.origin_id,
            number=self._number,
            chunk_id=chunk_id,
            plain_length=plain_length,
        )
        self._number += 1
        return binding


class Compressor:
    """zstd at one level, with a context of its own. One thread."""

    def __init__(self, level: int) -> None:
        """``level``: zstd's; the two that are much used have parameters of their own."""
        parameters = _PARAMETERS.get(level)
        self._context = (
            zstandard.ZstdCompressor(level=level, write_content_size=True)
            if parameters is None
            else zstandard.ZstdCompressor(compression_params=parameters)
        )

    def payload(self, plain: bytes | memoryview) -> bytes | memoryview:
        """What to seal: the compressed bytes if they are fewer, else ``plain`` itself."""
        compressed = self._context.compress(plain)
        if len(compressed) < len(plain):
            return compressed
        overwrite_ends(compressed)
        return plain


class Decompressor:
    """The inverse of `Compressor`, for bytes that nobody vouches for. One thread."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=PLAIN_BYTES_MAX)
        self._beyond = bytearray(1)

    def plain(self, payload: bytes | memoryview, *, plain_length: int) -> bytes | memoryview:
        """Exactly ``plain_length`` bytes; ``payload`` itself when it was not compressed.

        Raises: FormatError, IntegrityError.
        """
        if not 0 < plain_length <= PLAIN_BYTES_MAX:
            raise IntegrityError("a blob's length is out of bounds", length=plain_length)
        if len(payload) == plain_length:
            return payload
        try:
            # Checked before anything is allocated: the frame itself says how long it will become.
            if zstandard.frame_content_size(payload) != plain_length:
                raise IntegrityError("a blob decompresses to another length", wanted=plain_length)
            plain = self._context.decompress(
                payload, max_output_size=plain_length, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise IntegrityError("a blob cannot be decompressed") from error
        if len(plain) != plain_length:
            raise IntegrityError("a blob decompresses to another length", wanted=plain_length)
        return plain

    def decompress_into(self, payload: bytes | memoryview, target: memoryview) -> None:
        """Fill ``target`` with what was compressed, exactly. Raises: IntegrityError."""
        try:
            if zstandard.frame_content_size(payload) != len(target):
                raise IntegrityError("a blob decompresses to another length", wanted=len(target))
            # With all of the input and all of the room there at once zstd decodes in place, in one step.
            reader = self._context.stream_reader(payload, read_across_frames=True)
            length = reader.readinto(target)
            if length != len(target) or reader.readinto(self._beyond):
                raise IntegrityError("a blob decompresses to another length", wanted=len(target))
        except zstandard.ZstdError as error:
            raise IntegrityError("a blob cannot be decompressed") from error


def segment_cipher(header: SegmentHeader, segment_key: bytes) -> SegmentCipher:
    """The cipher of a segment whose key is known."""
    return SegmentCipher(header.repository_id, header.domain_id, AESGCM(segment_key))


def payload_length(stored_length: int) -> int:
    """The length of a blob's payload. Raises: FormatError."""
    if not TAG_BYTES < stored_length <= PLAIN_BYTES_MAX + TAG_BYTES:
        raise IntegrityError("a blob's length is out of bounds", length=stored_length)
    return stored_length - TAG_BYTES
