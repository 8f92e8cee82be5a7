"""Implements the sending part of a WebSocket client (RFC 6455), because the published client has no WebSocket."""

import base64
import json
import os
import socket
import struct
import urllib.parse


class Socket:
    def __init__(self, base_url, path, pak):
        at = urllib.parse.urlsplit(base_url)
        self.socket = socket.create_connection((at.hostname, at.port), timeout=10)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nAuthorization: Bearer {pak}\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = self.socket.recv(1)
            assert more, f"closed after {answer!r}"
            answer += more
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    def say(self, kind, body):
        """Sends one text frame, masked as RFC 6455 requires of a client."""
        text = json.dumps({"type": kind, "body": body}).encode()
        assert len(text) < 65536
        length = struct.pack("!B", 0x80 | len(text)) if len(text) < 126 else struct.pack("!BH", 0x80 | 126, len(text))
        mask = os.urandom(4)
        self.socket.sendall(b"\x81" + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
