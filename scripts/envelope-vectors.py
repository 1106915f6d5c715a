#!/usr/bin/env python3
"""Makes the known answers of src/store/envelope/tests.rs independently, with PyPI's `cryptography` (50.0.2)."""
import hashlib
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

def hkdf(key, salt, info, n):
    return HKDF(SHA256(), n, salt, info).derive(key)

S = 65536

def seal(key, salt, plain):
    magic = b"CBSEAL\x01\x10"
    okm = hkdf(key, salt, b"casebook blob segments" + magic, 71)
    out = magic + salt + okm[32:64]
    parts = [plain[i:i + S] for i in range(0, len(plain), S)] or [b""]
    for n, part in enumerate(parts):
        nonce = okm[64:] + n.to_bytes(4, "big") + bytes([n == len(parts) - 1])
        out += AESGCM(okm[:32]).encrypt(nonce, part, None)
    return out

def wrap(kek, key_id, salt, key, tenant, digest):
    okm = hkdf(kek, salt, b"casebook blob key wrap" + key_id, 64)
    aad = len(tenant).to_bytes(8, "big") + tenant + digest
    return b"\x01" + salt + okm[32:] + AESGCM(okm[:32]).encrypt(bytes(12), key, aad)

key, salt, kek = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
print(seal(key, salt, b"").hex())
print(seal(key, salt, b"what a machine decided").hex())
print(hashlib.sha256(seal(key, salt, bytes(i % 251 for i in range(2 * S + 1)))).hexdigest())
print(hashlib.sha256(seal(key, salt, bytes(i % 251 for i in range(2 * S)))).hexdigest())
print(wrap(kek, b"first", salt, key, b"acme", hashlib.sha256(b"what a machine decided").digest()).hex())
