"""Prints the orders that `data/order.rs` must give, from the definition alone: plain Python 3, nothing of mdpo nor of any random library."""

import hashlib
import struct


def chacha8(key: bytes):
    """64-bit words of ChaCha8 (Bernstein's layout: 64-bit block counter, 64-bit nonce 0)."""
    rotate = lambda x, n: (x << n | x >> (32 - n)) & 0xFFFFFFFF
    block = 0
    while True:
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), block & 0xFFFFFFFF, block >> 32, 0, 0]
        x = list(start)
        for _ in range(4):
            for a, b, c, d in [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]:
                for first, second, third, bits in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]:
                    x[first] = (x[first] + x[second]) & 0xFFFFFFFF
                    x[third] = rotate(x[third] ^ x[first], bits)
        words = [(p + q) & 0xFFFFFFFF for p, q in zip(x, start)]
        yield from (low | high << 32 for low, high in zip(words[::2], words[1::2]))
        block += 1


def below(words, bound):
    while True:
        wide = next(words) * bound
        if wide % 2**64 >= (2**64 - bound) % bound:
            return wide >> 64


def permutation(examples, seed, epoch):
    words = chacha8(hashlib.sha256(b"mdpo/order" + struct.pack("<QQ", seed, epoch)).digest())
    order = list(range(examples))
    for last in range(examples - 1, 0, -1):
        other = below(words, last + 1)
        order[last], order[other] = order[other], order[last]
    return order


for epoch in range(2):
    print(permutation(10, 42, epoch))
