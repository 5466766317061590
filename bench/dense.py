#!/usr/bin/python3
"""dense.py IMAGE OUT: writes the first GiB of an image's data, without its holes and zeroes, in pieces of 64 KiB."""
import sys

zero, left = bytes(65536), 16384
with open(sys.argv[1], "rb") as image, open(sys.argv[2], "wb") as dense:
    while left and (chunk := image.read(65536)):
        if chunk != zero[:len(chunk)]:
            dense.write(chunk)
            left -= 1
