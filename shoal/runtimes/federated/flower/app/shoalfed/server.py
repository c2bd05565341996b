"""The server's end of the carrier: jobs come from Shoal's socket and go to nodes, answers go back.

No strategy and no rounds: cohorts, quorums, checks and the model are in the process behind the socket.
"""

import multiprocessing.connection
import os
import struct
import time

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

HEAD = struct.Struct(">QQ")  # number of the job, node
LIMIT = 1 << 28
NAP = 0.1  # seconds between two looks
PRESENT = 2.0  # seconds between two looks at who is there

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry until the socket is closed."""
    del context
    waiting: dict[str, tuple[int, int]] = {}  # message -> job, node
    looked = 0.0
    with multiprocessing.connection.Client(os.environ["SHOAL_FEDERATE_SOCKET"], "AF_UNIX") as shoal:
        try:
            while True:
                if time.monotonic() - looked > PRESENT:
                    nodes = sorted(grid.get_node_ids())
                    shoal.send_bytes(b"N" + struct.pack(f">{len(nodes)}Q", *nodes))
                    looked = time.monotonic()
                while shoal.poll(NAP):
                    waiting |= push(grid, shoal.recv_bytes(LIMIT))
                for reply in grid.pull_messages(list(waiting)) if waiting else ():
                    hand_back(shoal, reply, waiting)
        except (EOFError, OSError):
            return


def push(grid: Grid, frame: bytes) -> dict[str, tuple[int, int]]:
    """Send a job to its node."""
    job, node = HEAD.unpack_from(frame)
    content = RecordDict({"job": ConfigRecord({"body": frame[HEAD.size :]})})
    sent = grid.push_messages([Message(content, dst_node_id=node, message_type=MessageType.TRAIN)])
    return dict.fromkeys(sent, (job, node))


def hand_back(
    shoal: multiprocessing.connection.Connection, reply: Message, waiting: dict[str, tuple[int, int]]
) -> None:
    """Give Shoal an answer, with the node that the transport says it is from; empty where there is none."""
    job, node = waiting.pop(reply.metadata.reply_to_message_id, (0, 0))
    try:
        body = b"" if reply.has_error() else reply.content["job"]["body"]
    except (KeyError, TypeError, ValueError):
        body = b""
    if not isinstance(body, bytes):
        body = b""
    source = node if reply.has_error() else reply.metadata.src_node_id  # an error's is the server's own
    shoal.send_bytes(b"R" + HEAD.pack(job, source) + body)
