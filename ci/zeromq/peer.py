"""libzmq for tests: a PUB on the port, a PUSH on the next, and one that is told what they send, by lines.

    pub topic text        two frames, to all who have subscribed
    push topic text       two frames, to one who pulls; waits until there is one
"""

import socketserver
import sys

import zmq

port = int(sys.argv[1])
context = zmq.Context()
sockets = {b"pub": context.socket(zmq.PUB), b"push": context.socket(zmq.PUSH)}
for number, one in enumerate(sockets.values()):
    one.setsockopt(zmq.SNDHWM, 100_000)
    one.bind(f"tcp://127.0.0.1:{port + number}")


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            kind, topic, text = line.rstrip(b"\n").split(b" ", 2)
            sockets[kind].send_multipart([topic, text])
        self.wfile.write(b"done\n")


# One after the other: a socket of libzmq belongs to one thread.
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("127.0.0.1", port + 2), Lines).serve_forever()
