"""A second reader of format 1, written from FORMAT.md alone: it imports nothing of the product.

It reads one disk of one point with nothing but the objects and a recovery key; where it and the product
disagree, FORMAT.md or the product is wrong.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
BLOCK = 65536
MIB = 1 << 20
SIGNED = {1, 2, 4, 5, 6, 8}


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def sheet_secret(text: str) -> bytes:
    secret = b""
    for group in text.split()[:8]:
        value = 0
        for character in group:
            value = value * 32 + ALPHABET.index(character)
        secret += value.to_bytes(5, "big")[:4]
    return secret


class IndependentReader:
    def __init__(self, objects: Mapping[str, bytes], recovery_key: str) -> None:
        self.objects = objects
        private = hkdf(sheet_secret(recovery_key), b"", b"holdfast 1 recovery sheet")
        newest = max(name for name in objects if name.startswith("keys/") and name[-1].isdigit())
        self.secrets = self._open_keys(objects[newest], private)
        self.repository = bytes.fromhex(self.secrets["repository_id"])
        self.domain = bytes.fromhex(self.secrets["domain_id"])
        self.id_key = bytes.fromhex(self.secrets["id_key"])
        self.chunks = self._read_packs()

    def _open_keys(self, data: bytes, private: bytes) -> dict:  # type: ignore[type-arg]  # JSON
        magic, version, head_length = struct.unpack_from("<8sHI", data)
        assert magic == b"HFKEYS\0\0"
        assert version == 1
        head_end = 14 + head_length
        head = json.loads(data[14:head_end])
        self.authority = bytes.fromhex(head["authority_public"])
        earlier = head.get("earlier_authorities", [])
        self.authorities = [bytes.fromhex(each["public_key"]) for each in earlier]
        self.authorities.append(self.authority)
        for each, public, successor in zip(
            earlier, self.authorities, self.authorities[1:], strict=False
        ):
            numbers = struct.pack("<IQ", each["next_generation"], each["writers_number"])
            Ed25519PublicKey.from_public_bytes(public).verify(
                bytes.fromhex(each["signature"]),
                b"holdfast 1 authority\0"
                + bytes.fromhex(head["repository_id"])
                + numbers
                + successor,
            )
        Ed25519PublicKey.from_public_bytes(self.authority).verify(
            data[-64:], b"holdfast 1 keys signature\0" + data[:-64]
        )
        repository = bytes.fromhex(head["repository_id"])
        generation = struct.pack("<I", head["generation"])
        entry = next(item for item in head["recipients"] if item["kind"] == "recovery-sheet")
        root = SUITE.decrypt(
            bytes.fromhex(entry["wrapped_root"]),
            X25519PrivateKey.from_private_bytes(private),
            info=b"holdfast 1 recipient"
            + repository
            + generation
            + bytes.fromhex(entry["id"])
            + entry["kind"].encode(),
        )
        key = hkdf(root, bytes.fromhex(head["salt"]), b"holdfast 1 keys" + repository + generation)
        sealed = data[head_end + 4 : -64]
        assert struct.unpack_from("<I", data, head_end)[0] == len(sealed)
        found: dict[str, str] = json.loads(AESGCM(key).decrypt(bytes(12), sealed, data[:head_end]))
        return found

    def open(self, data: bytes, kind: int, tag: bytes = bytes(16)) -> bytes:
        """The body of a sealed object."""
        header = data[:112]
        magic, version, algorithm, found, epoch, repository, domain, object_id, lineage, salt = (
            struct.unpack("<8sHBBI16s16s16s16s32s", header)
        )
        assert (magic, version, algorithm, found) == (b"HFOBJECT", 1, 1, kind)
        assert (repository, domain, lineage) == (self.repository, self.domain, tag)
        keys = next(item for item in self.secrets["epochs"] if item["epoch"] == epoch)
        class_key = bytes.fromhex(keys["index_key"])
        if kind in (3, 4, 9):
            meta = bytes.fromhex(keys["meta_key"])
            class_key = hkdf(meta, b"", b"holdfast 1 lineage key" + tag)
        if kind in SIGNED:
            Ed25519PublicKey.from_public_bytes(data[-96:-64]).verify(
                data[-64:], b"holdfast 1 object signature\0" + blake3(data[:-64]).digest()
            )
            data = data[:-96]
        cipher = AESGCM(hkdf(class_key, salt, b"holdfast 1 object key" + bytes([kind]) + object_id))
        segments = [data[at : at + MIB + 16] for at in range(112, len(data), MIB + 16)]
        return b"".join(
            cipher.decrypt(
                number.to_bytes(12, "big"),
                segment,
                header + struct.pack("<QB", number, number == len(segments) - 1),
            )
            for number, segment in enumerate(segments)
        )

    def _read_packs(self) -> dict[bytes, bytes]:
        """All chunks by id: the index is not needed."""
        found = {}
        for name, data in self.objects.items():
            if not name.startswith("packs/"):
                continue
            assert name.endswith(blake3(data).hexdigest())
            plain_at, plain_length, sealed_length, _, magic = struct.unpack("<IIII8s", data[-24:])
            assert magic == b"HFPACKEN"
            plain = data[plain_at : plain_at + plain_length]
            body = self.open(data[plain_at + plain_length :][:sealed_length], 7)
            assert body[:32] == blake3(plain).digest()
            magic, _, _, segments, blobs = struct.unpack_from("<8sHHII", plain)
            assert magic == b"HFPACKFT"
            ciphers = []
            for number in range(segments):
                offset, header = struct.unpack_from("<I144s", plain, 20 + number * 148)
                assert data[offset : offset + 144] == header
                ciphers.append(self._segment(header))
            position = 32
            for number in range(blobs):
                segment, blob, offset, length, digest = struct.unpack_from(
                    "<IIII32s", plain, 20 + segments * 148 + number * 48
                )
                chunk_id, kind, blocks, presence, plain_size = struct.unpack_from(
                    "<32sBBHI", body, position
                )
                assert presence == (1 << blocks) - 1
                digests = body[position + 40 : position + 40 + blocks * 16]
                position += 40 + blocks * 16
                stored = data[offset : offset + length]
                assert blake3(stored).digest() == digest
                cipher, origin = ciphers[segment]
                payload = cipher.decrypt(
                    blob.to_bytes(12, "big"),
                    stored,
                    struct.pack("<HBB", 1, 1, kind)
                    + self.repository
                    + self.domain
                    + origin
                    + struct.pack("<I", blob)
                    + chunk_id
                    + struct.pack("<I", plain_size),
                )
                content = payload
                if len(payload) != plain_size:
                    content = zstandard.ZstdDecompressor().decompress(payload)
                self._check_id(content, kind, chunk_id, digests)
                found[chunk_id] = content
        return found

    def _check_id(self, content: bytes, kind: int, chunk_id: bytes, digests: bytes) -> None:
        if kind == 1:
            key = hkdf(self.id_key, b"", b"holdfast 1 block digest")
            actual = b"".join(
                blake3(content[at : at + BLOCK], key=key).digest(16)
                for at in range(0, len(content), BLOCK)
            )
            assert actual == digests
            key = hkdf(self.id_key, b"", b"holdfast 1 frame id")
            assert blake3(digests, key=key).digest() == chunk_id
        else:
            key = hkdf(self.id_key, b"", b"holdfast 1 chunk id")
            assert blake3(content, key=key).digest() == chunk_id

    def _segment(self, header: bytes) -> tuple[AESGCM, bytes]:
        magic, version, algorithm, _, epoch, repository, domain, origin, wrapped = struct.unpack(
            "<8sHBBI16s16s16s80s", header
        )
        assert (magic, version, algorithm) == (b"HFSEGMNT", 1, 1)
        keys = next(item for item in self.secrets["epochs"] if item["epoch"] == epoch)
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(keys["content_private"]))
        info = b"holdfast 1 segment" + repository + domain + origin + struct.pack("<I", epoch)
        return AESGCM(SUITE.decrypt(wrapped, private, info=info)), origin

    def lineage_tag(self, lineage: str) -> bytes:
        key = hkdf(self.id_key, b"", b"holdfast 1 lineage tag")
        return blake3(lineage.encode(), key=key).digest(16)

    def _verifies(self, public: bytes, signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def manifest(self, lineage: str, job_id: str) -> dict:  # type: ignore[type-arg]  # JSON
        tag = self.lineage_tag(lineage)
        data = self.objects[f"points/{tag.hex()}/{job_id}"]
        found: dict[str, object] = json.loads(self.open(data[:-72], 4, tag))
        grant = data[-72:]
        message = (
            b"holdfast 1 commit grant\0"
            + self.repository
            + grant[:8]
            + struct.pack("<I", found["attempt"])
            + blake3(data[:-72]).digest()
            + job_id.encode()
        )
        assert any(self._verifies(key, grant[8:], message) for key in self.authorities)
        assert found["lineage_id"] == lineage
        return found

    def disk(self, lineage: str, job_id: str, number: int = 0) -> bytes:
        """A whole disk of a point."""
        disk = self.manifest(lineage, job_id)["disks"][number]
        capacity = disk["header"]["capacity_bytes"]
        image = bytearray(capacity)
        root = disk["root"]
        if root is not None:
            level = 0
            while 256**level * 16 * MIB < capacity:
                level += 1
            tag = self.lineage_tag(lineage)
            where = (bytes.fromhex(root["object_id"]), root["offset"], root["length"])
            self._page(tag, where, bytes.fromhex(root["digest"]), level, 0, image)
        return bytes(image)

    def _page(
        self,
        tag: bytes,
        where: tuple[bytes, int, int],
        digest: bytes,
        level: int,
        number: int,
        image: bytearray,
    ) -> None:
        object_id, offset, length = where
        body = self.open(self.objects[f"maps/{tag.hex()}/{object_id.hex()}"], 3, tag)
        page = body[offset : offset + length]
        assert (
            blake3(page, key=hkdf(self.id_key, b"", b"holdfast 1 page digest")).digest() == digest
        )
        found, _, count, others, _, position = struct.unpack_from("<BBHHHQ", page)
        assert (found, position) == (level, number)
        if level:
            for row in range(count):
                slot, _, item, size, at, _, below = struct.unpack_from(
                    "<BBHIQQ32s", page, 16 + others * 16 + row * 56
                )
                owner = page[16 + item * 16 :][:16]
                self._page(tag, (owner, at, size), below, level - 1, number * 256 + slot, image)
            return
        for row in range(count):
            first, more, frame, place = struct.unpack_from("<BBBB", page, 16 + row * 4)
            chunk = self.chunks[page[16 + count * 4 + frame * 32 :][:32]]
            start = (number * 256 + first) * BLOCK
            data = chunk[place * BLOCK : (place + more + 1) * BLOCK]
            assert len(data) == min((more + 1) * BLOCK, len(image) - start)
            image[start : start + len(data)] = data

    def blob(self, lineage: str, job_id: str, kind: str) -> bytes:
        """A blob of a point."""
        blobs = self.manifest(lineage, job_id)["blobs"]
        record = next(item for item in blobs if item["kind"] == kind)
        return b"".join(self.chunks[bytes.fromhex(chunk)] for chunk, _ in record["chunks"])
